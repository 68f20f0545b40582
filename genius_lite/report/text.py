"""What a model or a recipe says, made fit for a page: nothing hidden in it stays hidden, nothing long stays long."""

from __future__ import annotations

import math
from typing import Any

from genius_lite import visible as shared


def visible(text: str) -> str:
    """Text of several lines with what cannot be seen spelled out: control characters, turns of direction."""
    return shared.visible(text, shared.PROSE)


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
