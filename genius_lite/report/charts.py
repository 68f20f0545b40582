"""Charts as SVG text, drawn here so that a page reads without a script. Colours are classes of the style sheet.

Each is 340 units wide, which is a phone's width, so that its text stays legible there; a wide page puts several side
by side. Where a figure is not finite the line has a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from genius_lite.text import number

WIDTH, HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 22, 26


@dataclass(frozen=True)
class Point:
    """A place of a line, and the ends of its interval, if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line. `dots` marks its points; `band` shades its intervals instead of drawing whiskers.

    `aside` sets it so many units to the right: the whiskers of several lines stand beside each other.
    """

    name: str
    points: list[Point]
    dots: bool = True
    band: bool = False
    aside: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return round(self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5), 1)


def lines(
    series: Sequence[Series],
    *,
    unit: str,
    ticks: Sequence[tuple[float, str]],
    described: str,
    dividers: Sequence[tuple[float, str]] = (),
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Markup:
    """Draw lines over a common axis.

    Args:
        unit: what the vertical axis counts, above it.
        ticks: of the horizontal axis, with their labels.
        described: in words, for who cannot see it.
        dividers: vertical lines, each with the label of what follows it.
        within: what the vertical axis may hold at most, such as 0 to 100 for percent.
    """
    finite = [p for s in series for p in s.points if math.isfinite(p.y)]
    ends = [v for p in finite for v in (p.y, p.low, p.high) if v is not None and math.isfinite(v)]
    every = nice_ticks(min(ends, default=0.0), max(ends, default=1.0))
    y_ticks = [tick for tick in every if within[0] <= tick <= within[1]]
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    places = [p.x for s in series for p in s.points] + [place for place, _ in (*ticks, *dividers)]
    inset = 14 if any(s.dots for s in series) else 0
    x = Scale(min(places), max(places), _LEFT + inset, WIDTH - _RIGHT - inset)
    parts = [_grid(y, y_ticks), _text(4, 9, unit, "unit")]
    for place, label in dividers:
        parts.append(_line(x(place), _TOP, x(place), HEIGHT - _BOTTOM, "divider"))
        parts.append(_text(x(place) + 3, _TOP + 9, label, "tick"))
    parts += [_text(x(place), HEIGHT - 8, label, "tick middle") for place, label in ticks]
    parts += [_series(s, n, x, y) for n, s in enumerate(series)]
    for n, s in enumerate(series):
        parts += [_dot(x(p.x) + s.aside, y(p.y), n) for p in s.points if s.dots and math.isfinite(p.y)]
    return _svg(parts, HEIGHT, described)


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    *,
    kinds: Sequence[str],
    described: str,
    form: Callable[[float], str],
) -> Markup:
    """Draw a horizontal bar a row, stacked of (kind, amount).

    Args:
        kinds: all there are, in the order of their colours.
        form: writes an amount with its unit.
    """
    most = max((sum(amount for _, amount in parts) for _, parts in rows), default=0.0) or 1.0
    x = Scale(0.0, most, 4, WIDTH - _RIGHT)
    drawn = []
    for n, (name, parts) in enumerate(rows):
        top, done = 18 + 40 * n, 0.0
        total = sum(amount for _, amount in parts)
        drawn.append(_text(4, top, name, "label"))
        drawn.append(_text(WIDTH - _RIGHT, top, form(total), "tick end"))
        for kind, amount in parts:
            width = x(done + amount) - x(done)
            drawn.append(
                f'<rect x="{x(done):g}" y="{top + 5}" width="{max(width - 1, 0.5):g}" height="14" '
                f'class="bar k{kinds.index(kind)}"><title>{escape(kind)}: {escape(form(amount))}</title></rect>'
            )
            done += amount
    return _svg(drawn, 40 * len(rows) + 8, described)


def gauge(values: Sequence[float], warn: float | None, halt: float | None, *, low: bool, described: str) -> Markup:
    """Draw the values of all rounds on one strip, whose zones are coloured; the latest one is filled.

    Args:
        low: less is worse.
    """
    ends = [v for v in (*values, warn, halt) if v is not None and math.isfinite(v)] or [0.0]
    span = (max(ends) - min(ends)) or abs(max(ends)) or 1.0
    x = Scale(min(ends) - 0.15 * span, max(ends) + 0.15 * span, 4, WIDTH - 4)
    worst, best = (x.low, x.high) if low else (x.high, x.low)
    warn = worst if warn is None else warn
    halt = worst if halt is None else halt
    zones = (("ok", best, warn), ("warn", warn, halt), ("halt", halt, worst))
    drawn = [
        f'<rect x="{min(x(a), x(b)):g}" y="7" width="{abs(x(a) - x(b)):g}" height="10" class="zone {kind}"/>'
        for kind, a, b in zones
    ]
    shown = [value for value in values if math.isfinite(value)]
    for n, value in enumerate(shown):
        kind = "now" if n == len(shown) - 1 else "then"
        drawn.append(f'<circle cx="{x(value):g}" cy="12" r="5" class="{kind}"/>')
    return _svg(drawn, 24, described)


def nice_ticks(low: float, high: float) -> list[float]:
    """Find some five round numbers from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # no more than roundings apart
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _series(s: Series, n: int, x: Scale, y: Scale) -> str:
    parts = []
    runs = [list(run) for ok, run in groupby(s.points, key=lambda p: math.isfinite(p.y)) if ok]
    for run in runs:
        ends = [(p, p.low, p.high) for p in run if p.low is not None and p.high is not None]
        if s.band and len(ends) > 1:
            outline = [f"{x(p.x):g},{y(high):g}" for p, _, high in ends]
            outline += [f"{x(p.x):g},{y(low):g}" for p, low, _ in reversed(ends)]
            parts.append(f'<polygon points="{" ".join(outline)}" class="band s{n}"/>')
        elif not s.band:
            parts += [_whisker(x(p.x) + s.aside, y(low), y(high), n) for p, low, high in ends]
        points = " ".join(f"{x(p.x) + s.aside:g},{y(p.y):g}" for p in run)
        parts.append(f'<polyline points="{points}" class="line s{n}"/>')
    return "".join(parts)


def _whisker(x: float, low: float, high: float, n: int) -> str:
    caps = f"M{x - 4:g} {low:g}h8M{x - 4:g} {high:g}h8"
    return f'<path d="M{x:g} {low:g}V{high:g}{caps}" class="whisker s{n}"/>'


def _dot(x: float, y: float, n: int) -> str:
    """Draw a disc for the first series, a diamond for the second: colour is not all that tells them apart."""
    if n == 0:
        return f'<circle cx="{x:g}" cy="{y:g}" r="4.5" class="dot s0"/>'
    return f'<path d="M{x:g} {y - 5.5:g}l5.5 5.5l-5.5 5.5l-5.5 -5.5z" class="dot s{n}"/>'


def _grid(y: Scale, ticks: list[float]) -> str:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    # 0.25 needs a digit more than its power of ten says.
    digits += any(abs(round(tick, digits) - tick) > 1e-9 * abs(ticks[-1] - ticks[0]) for tick in ticks)
    parts = []
    for tick in ticks:
        parts.append(_line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid zero" if tick == 0 else "grid"))
        parts.append(_text(_LEFT - 6, y(tick) + 4, number(tick, digits), "tick end"))
    return "".join(parts)


def _svg(parts: Sequence[str], height: float, described: str) -> Markup:
    # Every piece is made above, of numbers and of escaped text.
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(described)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'
