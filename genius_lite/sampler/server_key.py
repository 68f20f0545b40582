"""A server's key, and whose it is: both come from the environment."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from genius_lite.errors import UserError
from genius_lite.text import brief

KEY, HOLDER = "GENIUS_LITE_SERVER_KEY", "GENIUS_LITE_SERVER_URL"
"""The environment variables with a server's key, which stands nowhere else and is written nowhere, and with that
server's address: a recipe, which may be a stranger's, does not say who gets the key."""


def is_open(url: str) -> bool:
    """Say whether others can read the key on its way: it leaves this machine, and is not encrypted."""
    there = _address(url)
    own = re.fullmatch(r"localhost|127(\.\d+){3}|::1", there.hostname or "")
    return there.scheme == "http" and not own and bool(os.environ.get(KEY))


def key_for(url: str) -> str:
    """Return the key for the server at `url`; empty where there is none.

    Raises:
        UserError: the key in the environment is none, or is for another server.
    """
    key, holder = (os.environ.get(name, "").strip() for name in (KEY, HOLDER))
    if not (key.isascii() and key.replace(" ", "").isprintable()):
        raise UserError(f"the environment variable {KEY} holds characters that no key has")
    if key and (not holder or _origin(holder) != _origin(url)):
        whose = f"the server at {brief(holder)} ({HOLDER})" if holder else "no server yet"
        shown = "{0.scheme}://{0.netloc}".format(_address(url))
        raise UserError(
            f"the key in {KEY} is for {whose}, and the recipe's sampler.server.url is {url}; if that may have the key, "
            f"set {HOLDER}={shown}"
        )
    return key


def _address(url: str) -> SplitResult:
    return urlsplit(url if "://" in url else f"http://{url}")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address.

    Raises:
        UserError: it is none.
    """
    try:
        there = _address(url)
        return there.scheme, there.hostname, there.port or {"http": 80, "https": 443}.get(there.scheme)
    except ValueError:
        raise UserError(f"{brief(url)} is no address such as http://127.0.0.1:8080") from None
