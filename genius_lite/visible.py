"""Text of models, queries and paths made fit for a terminal: nothing in it acts, hides, or turns what stands beside."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (text direction), surrogates, line and paragraph separators
PROSE = "\n\t\u200c\u200d"
"""What a text of several lines keeps: line breaks and tabs, and the joiners of some scripts and of emoji."""


def visible(text: str, kept: str = "") -> str:
    """The text with every character that cannot be seen spelled out as Python does, `\\x1b`, but those in `kept`."""
    if text.isprintable():
        return text
    hidden = {c for c in set(text) if c not in kept and unicodedata.category(c) in _HIDDEN}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in hidden})


def brief(text: str, longest: int = 60) -> str:
    """The text in one line of at most about `longest` characters, as a message quotes it."""
    beginning = " ".join(text[: 4 * longest].split())
    shown = visible(beginning)
    return shown if len(shown) <= longest and len(text) <= 4 * longest else f"{shown[:longest]}..."
