"""A browser to look at reports with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where this machine's Chromium is."""
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", mac)
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine; apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    """While it is open, an event loop runs in this thread: nothing else may call asyncio.run()."""
    from playwright.sync_api import sync_playwright

    # As root it needs the first; a container's shared memory may be too small for it without the second.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    arguments = ["--no-sandbox"] * root + ["--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Opens a file, or an address; complaints of the page, and requests beyond it, fail the test."""
    complaints, contexts = [], []

    def open_page(place: Path | str, width: int = 1280, scheme: str = "light", **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.set_default_timeout(10_000)
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: complaints.append(dialog.message))
        address = place if isinstance(place, str) else place.as_uri()
        own = ("data:", address if isinstance(place, str) else "file:")
        opened.on("request", lambda r: r.url.startswith(own) or complaints.append(r.url))
        opened.goto(address)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def open_all(view) -> None:
    """Unfold everything that can be unfolded."""
    view.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
