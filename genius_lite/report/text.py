"""What a model or a recipe says, made fit for a page: nothing hidden in it stays hidden, nothing long stays long."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separators
_KEPT = "\n\t\u200c\u200d"  # the last two join letters in some scripts, and emoji


def visible(text: str) -> str:
    """The text with every control and format character written out by its number, as `[U+202E]`.

    Those can hide text or turn the direction of writing. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c in _KEPT or unicodedata.category(c) not in _HIDDEN else f"[U+{ord(c):04X}]" for c in text)


def cut(text: str, longest: int) -> str:
    """At most `longest` characters of the text, and how many more there were."""
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]}… [{more} more characters]"


def plain(value: Any) -> Any:
    """A JSON value whose strings are `visible`, and whose numbers JSON knows: one that is not finite becomes None."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {visible(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
