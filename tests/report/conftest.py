"""A browser to look at reports with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import browser as browsers


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where this machine's Chromium is."""
    found = browsers.chromium()
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine; apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    with browsers.launched(chromium) as opened:
        yield opened


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
