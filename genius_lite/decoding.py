"""Types that msgspec decodes, each looked at by one thread."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, TypeVar

import msgspec

K = TypeVar("K")

_ALONE = threading.Lock()


def prepared(kind: K) -> K:
    """Have msgspec look at a type before anything is decoded as it, and return the type.

    msgspec (0.22) keeps what it finds out of a Struct in the class, from the moment when it begins: a second thread
    that decodes such a Struct meanwhile follows a null pointer, and the process is gone. Whoever decodes or converts
    asks here first, so that a type, and those within it, are known whole before any other thread meets them.
    """
    with _ALONE:
        _look_at(kind)
    return kind


@cache
def _look_at(kind: Any) -> None:
    msgspec.json.Decoder(kind)
