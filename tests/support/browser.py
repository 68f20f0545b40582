"""This machine's Chromium, driven by Playwright, which downloads none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", _MAC)


def chromium() -> str | None:
    """Find where it is."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """Start it for the block. Meanwhile an event loop runs in this thread: nothing else may call asyncio.run()."""
    # As root it needs the first; a container's shared memory may be too small for it without the second.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    arguments = ["--no-sandbox"] * root + ["--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()
