"""The charts of a run's report, each with the table that says the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from genius_lite.evaluate.guard import guard_status
from genius_lite.foresight.filters import FILTERS
from genius_lite.progress import Stage
from genius_lite.recipe import Guard, Limit
from genius_lite.report.charts import Point, Series, bars, gauge, lines
from genius_lite.report.gather import Answered, RoundData, RunData
from genius_lite.report.status import recorded_guard
from genius_lite.report.tables import Table, stage_totals
from genius_lite.text import NONE, duration, figure, prose

_POINTS = 60  # of a training curve; more updates are averaged
_PERCENT = (0.0, 100.0)

PAIRS = ["learned from", *FILTERS.values()]
"""What becomes of a pair, in the order of the colours."""


@dataclass(frozen=True)
class Figure:
    """A chart. `legend` is (class, label) for each of its colours; `table` is None where the page has it already."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    table: Table | None


def task_figure(data: RunData, answered: Answered) -> Figure:
    """Draw the accuracy of the base model and every round on a task."""
    of_task = [(policy.number, task) for policy, task in answered if policy is not data.own]
    series = []
    for kind in ("sampled", "greedy"):
        measured = [(n, accuracy) for n, task in of_task if (accuracy := getattr(task, kind))]
        points = [Point(n, 100 * a.estimate, 100 * a.low, 100 * a.high) for n, a in measured]
        series += [Series(kind, points, aside=7.0 * len(series))] if points else []
    of_kinds = (f"{s.name} {', '.join(f'{p.y:.1f} %' for p in s.points)}" for s in series)
    described = f"{prose(answered[0][1].task)}: {'; '.join(of_kinds)}"
    unit = "% right, with 95 % intervals"
    svg = lines(series, unit=unit, ticks=_ticks(data, base=True), described=described, within=_PERCENT)
    return Figure("Before and after", svg, [(f"s{n}", s.name) for n, s in enumerate(series)], None)


def round_figures(data: RunData) -> list[Figure]:
    """Draw curves over rounds; a single point, which the table below says too, is none."""
    rows: list[tuple[str, str, Callable[[RoundData], float | None]]] = [
        ("Foresight value", "nats per token", lambda r: r.report.rollouts and r.report.rollouts.mean_value),
        ("Learned margin", "nats", lambda r: r.report.training and r.report.training.margin),
        ("Pairs ranked right", "%", lambda r: r.report.training and r.report.training.accuracy),
        ("Agreement of answers", "%", lambda r: r.signals and r.signals.agreement),
        ("Token entropy", "nats per token", lambda r: r.signals and r.signals.entropy),
        ("Length of responses", "tokens", lambda r: r.signals and r.signals.length),
    ]
    found = []
    for title, unit, of in rows:
        scale = 100 if unit == "%" else 1
        shown = [(policy, scale * value) for policy in data.policies if (value := of(policy)) is not None]
        if len(shown) < 2:
            continue
        described = f"{title}, {unit}: " + ", ".join(f"{policy.name} {figure(value)}" for policy, value in shown)
        points = [Point(policy.number, value) for policy, value in shown]
        ticks = _ticks(data, base=shown[0][0].number == 0)
        table = Table(f"curve-{len(found)}", title, ["policy", unit], [[p.name, figure(v)] for p, v in shown])
        within = _PERCENT if unit == "%" else (-math.inf, math.inf)
        svg = lines([Series(title, points)], unit=unit, ticks=ticks, described=described, within=within)
        found.append(Figure(title, svg, [], table))
    return found


def training_figures(data: RunData) -> list[Figure]:
    """Draw loss, margin and gradient by update, the rounds one after the other."""
    rounds = [(r.name, training.curve) for r in data.rounds if (training := r.report.training) and training.curve]
    if not rounds:
        return []
    return [
        _curve(rounds, "Loss", "loss", "mean of the update's pairs"),
        _curve(rounds, "Reward margin", "margin", "nats, chosen over rejected; of SFT, of the chosen alone"),
        _curve(rounds, "Gradient norm", "grad_norm", "before clipping"),
    ]


def time_figure(data: RunData) -> Figure | None:
    """Draw where the time went."""
    rows: dict[str, list[tuple[str, float]]] = {}
    for name, timed in stage_totals(data):
        rows.setdefault(name, []).append((timed.stage, timed.seconds))
    if not rows:
        return None
    return _bars("Time by stage", list(rows.items()), list(Stage), duration)


def pairs_figure(data: RunData) -> Figure | None:
    """Draw what became of each round's pairs."""
    rows = []
    for r in (r for r in data.rounds if r.pairs):
        left_out = [(why, float(r.report.pairs_left_out.get(key, 0))) for key, why in FILTERS.items()]
        rows.append((r.name, [(PAIRS[0], float(r.report.pairs or 0)), *(part for part in left_out if part[1])]))
    return _bars("Pairs", rows, PAIRS, "{:.0f} pairs".format) if rows else None


def _bars(
    title: str, rows: list[tuple[str, list[tuple[str, float]]]], kinds: Sequence[str], form: Callable[[float], str]
) -> Figure:
    in_words = (f"{name}: {', '.join(f'{kind} {form(amount)}' for kind, amount in parts)}" for name, parts in rows)
    used = {kind for _, parts in rows for kind, _ in parts}
    legend = [(f"k{n}", kind) for n, kind in enumerate(kinds) if kind in used]
    svg = bars(rows, kinds=kinds, described=f"{title}: {'; '.join(in_words)}", form=form)
    return Figure(title, svg, legend, None)


@dataclass(frozen=True)
class Light:
    """A signal of the guard: what it says, its latest value and level, and its strip."""

    signal: str
    said: str
    value: str
    level: str
    svg: Markup


def lights(data: RunData) -> list[Light]:
    """List every signal that was read, with the level of the latest round; the worst first."""
    guard = recorded_guard(data.recipe)
    rounds = [r for r in data.rounds if r.readings]
    if not rounds:
        return []
    levels, found = guard_status(guard, rounds[-1].report, data.base.signals), []
    for signal, latest in rounds[-1].readings.items():
        limit: Limit = getattr(guard, signal)
        values = [r.readings[signal].value for r in rounds if signal in r.readings]
        warn, halt = (NONE if bound is None else bound for bound in (limit.warn, limit.halt))
        described = f"{signal}: {', '.join(map(figure, values))}; warns at {warn}, halts at {halt}"
        svg = gauge(values, limit.warn, limit.halt, low=latest.low, described=described)
        said = Guard.model_fields[signal].description or ""
        found.append(Light(signal, said, figure(latest.value), levels.get(signal, "not watched"), svg))
    return sorted(found, key=lambda light: ["halt", "warn", "ok", "not watched"].index(light.level))


def _curve(rounds: list[tuple[str, list[dict[str, float]]]], title: str, key: str, unit: str) -> Figure:
    points, dividers, start = [], [], 0
    for name, curve in rounds:
        values = [row[key] for row in curve]
        dividers.append((float(start), name))
        points += list(_averaged(values, start, math.ceil(_POINTS / len(rounds))))
        start += len(values)
    averaged = len(points) < start
    ticks = [(float(n), str(n + 1)) for n in {0, start // 2, start - 1}]
    described = f"{title} by update, from {figure(points[0].y)} to {figure(points[-1].y)} in {start} updates"
    series = Series(title, points, dots=start <= 30, band=averaged)
    svg = lines([series], unit=unit, ticks=ticks, described=described, dividers=dividers)
    rows = [[str(round(p.x) + 1), figure(p.y)] for p in points]
    note = "Means of neighbouring updates; the band is their range." if averaged else ""
    return Figure(title, svg, [], Table(f"by-update-{key}", f"{title} by update", ["update", unit], rows, note))


def _averaged(values: list[float], start: int, most: int) -> Iterator[Point]:
    """Yield at most `most` means of neighbouring values, with the range of each."""
    width = math.ceil(len(values) / most)
    for at in range(0, len(values), width):
        part = values[at : at + width]
        yield Point(start + at + (len(part) - 1) / 2, fmean(part), min(part), max(part))


def _ticks(data: RunData, *, base: bool) -> list[tuple[float, str]]:
    return [(0.0, "base")] * base + [(float(r.number), str(r.number)) for r in data.rounds]
