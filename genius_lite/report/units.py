"""Figures as a person reads them, with their units."""

from __future__ import annotations

import math

from genius_lite.evaluate.statistics import Interval

NONE = "–"
"""What stands where there is no figure."""


def number(value: float | None, digits: int = 2, sign: str = "", unit: str = "") -> str:
    """`1,234.50 nats`; whole numbers have no decimals. `sign` is "+" where the sign is always shown."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    shown = f"{value:{sign},d}" if isinstance(value, int) else f"{value:{sign},.{digits}f}"
    return f"{_minus(shown)} {unit}".rstrip()


def figure(value: float) -> str:
    """Three significant digits."""
    return _minus(f"{value:.3g}") if math.isfinite(value) else "not finite"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as `31 %`."""
    return NONE if value is None else number(100 * value, digits, unit="%")


def accuracy(value: Interval | None) -> str:
    """`31.2 % [28.0, 34.5]`."""
    return f"{percent(value.estimate, 1)} {interval(value)}" if value else NONE


def interval(value: Interval) -> str:
    """`[28.0, 34.5]`, in percent."""
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def gain(value: Interval | None) -> str:
    """`+3.1 [+0.4, +5.9]`, in percentage points."""
    if value is None:
        return NONE
    return _minus(f"{100 * value.estimate:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]")


def size(value: float | None) -> str:
    """Bytes as `145 MB`."""
    if value is None:
        return NONE
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if value >= s), ("kB", 1e3))
    shown = value / scale
    return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `2 min 03 s`, `4.8 s`."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _minus(shown: str) -> str:
    return shown.replace("-", "\N{MINUS SIGN}")
