"""Text and figures as a person reads them; nothing in foreign text acts, hides, or turns what stands beside it."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from genius_lite.results.evaluation import Commonest, Interval

# Control, format (text direction), surrogates, characters that nobody assigned, line and paragraph separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
PROSE = "\n\t\u200c\u200d"
"""What a text of several lines keeps: line breaks and tabs, and the joiners of some scripts and of emoji."""


def visible(text: str, kept: str = "") -> str:
    """Spell every character that cannot be seen out as Python does, `\\x1b`, but those in `kept`."""
    if text.isprintable():
        return text
    hidden = {c for c in set(text) if c not in kept and unicodedata.category(c) in _HIDDEN}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in hidden})


def brief(text: str, longest: int = 60) -> str:
    """Quote the text as a message does, in one line of at most about `longest` characters."""
    beginning = " ".join(text[: 4 * longest].split())
    shown = visible(beginning)
    return shown if len(shown) <= longest and len(text) <= 4 * longest else f"{shown[:longest]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of what an error, or its cause, says."""
    cause = error.__cause__ or error
    return brief((str(cause).strip() or type(cause).__name__).splitlines()[0], 200)


def prose(text: str) -> str:
    """Spell out what cannot be seen in a text of several lines: control characters, turns of direction."""
    return visible(text, PROSE)


def cut(text: str, longest: int) -> str:
    """Cut the text to at most `longest` characters, and say how many more there were."""
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]}… [{more} more characters]"


def plain(value: Any, *, finite: bool = True) -> Any:
    """Make the strings of a JSON value `prose`, and its numbers such as JSON knows: None if not `finite`."""
    if isinstance(value, str):
        return prose(value)
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if isinstance(value, dict):
        return {prose(str(key)): plain(item, finite=finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, finite=finite) for item in value]
    return value


NONE = "–"
"""What stands where there is no figure."""


def number(value: float | None, digits: int = 2, sign: str = "", unit: str = "") -> str:
    """Write `1,234.50 nats`; whole numbers have no decimals. `sign` is "+" where the sign is always shown."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    shown = f"{value:{sign},d}" if isinstance(value, int) else f"{value:{sign},.{digits}f}"
    return f"{_minus(shown)} {unit}".rstrip()


def p_value(value: float) -> str:
    """Write `0.603`, and `< 0.001` below that, as no test finds 0."""
    return "< 0.001" if value < 0.001 else number(value, 3)


_ENDINGS = (("ies", "y"), ("ches", "ch"), ("sses", "ss"), ("ices", "ix"), ("s", ""))  # of many, and of one


def amount(count: float, units: str) -> str:
    """Write `12 queries`, `1 query`; the units are given as of many."""
    one = next((units.removesuffix(many) + one for many, one in _ENDINGS if units.endswith(many)), units)
    return f"{count:,.0f} {one if round(count) == 1 else units}"


def figure(value: float) -> str:
    """Write three significant digits."""
    return _minus(f"{value:.3g}") if math.isfinite(value) else "not finite"


def percent(value: float | None, digits: int = 0) -> str:
    """Write a share as `31 %`."""
    return NONE if value is None else number(100 * value, digits, unit="%")


def accuracy(value: Interval | None) -> str:
    """Write `31.2 % [28.0, 34.5]`."""
    return f"{percent(value.estimate, 1)} {interval(value)}" if value else NONE


def commonest(value: Commonest | None) -> str:
    """Write `81 % "B"`: the figure first, so that an answer that is read from right to left does not move it."""
    if value is None:
        return NONE
    wide = any(unicodedata.east_asian_width(c) in "WF" for c in value.answer[:8])
    shown = brief(value.answer.replace('"', "'"), 4 if wide else 8)
    return f'{percent(value.share)} "{shown}"'


def interval(value: Interval) -> str:
    """Write `[28.0, 34.5]`, in percent."""
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def gain(value: Interval | None) -> str:
    """Write `+3.1 [+0.4, +5.9]`, in percentage points."""
    if value is None:
        return NONE
    return _minus(f"{100 * value.estimate:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]")


def unbroken(shown: str) -> str:
    """Keep a line from ending within a figure: `31.2 % [28.0, 34.5]` stays together."""
    return re.sub(r" (?=[%[])|(?<=\d,) (?=[\d+\N{MINUS SIGN}])", "\N{NO-BREAK SPACE}", shown)


def in_ascii(shown: str) -> str:
    """Write a figure for a terminal, without a blank before %: `-3.1%`."""
    return shown.replace("\N{MINUS SIGN}", "-").replace(" %", "%")


def size(value: float | None) -> str:
    """Write bytes as `145 MB`."""
    if value is None:
        return NONE
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if value >= s), ("kB", 1e3))
    shown = value / scale
    return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """Write `1 h 05 min`, `2 min 03 s`, `4.8 s`."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short_duration(seconds: float) -> str:
    """Write `2h05m`, `3m20s`, `45s`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def hours(seconds: float) -> str:
    """Write what is estimated: `7 hours`, `20 minutes`."""
    return amount(seconds / 3600, "hours") if seconds > 2 * 3600 else amount(max(1, seconds / 60), "minutes")


def _minus(shown: str) -> str:
    return shown.replace("-", "\N{MINUS SIGN}")
