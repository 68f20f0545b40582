"""Runs side by side: what each round gained over its base model, and how the first run's rounds compare."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from genius_lite.errors import UserError
from genius_lite.evaluate.record import read_responses
from genius_lite.evaluate.results import GREEDY, Response
from genius_lite.evaluate.statistics import Interval, paired_difference
from genius_lite.report.summary import points

_SEED = 0  # of the bootstrap
_OF_A_SEED = ("seed", "watched")  # of a run's identity: the seed decides which queries are held out and watched

Scores = dict[str, float]
"""Problem -> share of right responses, over the seeds of an arm."""


class Row(msgspec.Struct, frozen=True):
    """A round of an arm on a task. Differences are paired by problem, their intervals bootstraps over problems.

    An arm is all runs whose recipes differ in nothing but the seed; `seeds` is their number, `seed_spread` the standard
    deviation of their sampled gains (None for one seed). `to_first` sets the sampled accuracy beside that of the first
    arm's same round, on the problems that both have.
    """

    task: str
    arm: str
    seeds: int
    round: int
    best: bool
    sampled: float | None
    sampled_gain: Interval | None
    greedy_gain: Interval | None
    seed_spread: float | None
    to_first: Interval | None


def compare_runs(runs: Sequence[Path]) -> list[Row]:
    """A row for each task, arm and round.

    Raises:
        UserError: a folder is no run, or its rounds were not measured on any task.
    """
    found: list[Row] = []
    arms = _arms(runs)
    first: dict[tuple[str, int], Scores] = {}
    for name, members in arms.items():
        measured = [{n: read_responses(run, n) for n in _rounds(run)} for run in members]
        if not all(each.get(0) for each in measured):
            raise UserError(f"{name}: this run has measured no task; add some to `evaluate.tasks` of its recipe")
        best = {_best(run) for run in members}
        tasks = list(dict.fromkeys(response.task for response in measured[0][0]))
        for task in tasks:
            for number in sorted(set.intersection(*(set(each) for each in measured)) - {0}):
                gains = _gains(measured, task, number)
                row = Row(
                    task=task,
                    arm=name,
                    seeds=len(members),
                    round=number,
                    best=best == {number},
                    sampled=fmean(gains.sampled.values()) if gains.sampled else None,
                    sampled_gain=_difference(gains.base_sampled, gains.sampled),
                    greedy_gain=_difference(gains.base_greedy, gains.greedy),
                    seed_spread=stdev(gains.of_each_seed) if len(gains.of_each_seed) > 1 else None,
                    to_first=_difference(first.get((task, number), {}), gains.sampled),
                )
                found.append(row)
                first.setdefault((task, number), gains.sampled)
    return found


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """A table for each task."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row.task].append(row)
    for task, of_task in by_task.items():
        table = Table(title=task, box=box.SIMPLE_HEAD)
        table.add_column("run", overflow="fold")
        for heading in ("round", "sampled", "gain", "greedy gain", "to the first"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in of_task:
            table.add_row(
                row.arm + _over_seeds(row),
                f"{row.round}{'*' if row.best else ''}",
                f"{row.sampled:.1%}" if row.sampled is not None else "-",
                _on_two_lines(row.sampled_gain) or "-",
                _on_two_lines(row.greedy_gain) or "-",
                _on_two_lines(row.to_first) if row.arm != of_task[0].arm else "",
            )
        console.print(table)
    console.print(
        "Gains over the base model, and differences to the first run, in points with 95 % intervals over problems. "
        "* the run's best round: it was chosen on these problems, which flatters it. +-: standard deviation of the "
        "gain between seeds."
    )


def _over_seeds(row: Row) -> str:
    if row.seed_spread is None:
        return ""
    return f"\n{row.seeds} seeds\n+- {100 * row.seed_spread:.1f}"


def _on_two_lines(gain: Interval | None) -> str:
    """As three intervals do not fit beside each other into 80 columns."""
    return points(gain).removesuffix(" points").replace(" [", "\n[") if gain else ""


class _Gains(msgspec.Struct):
    sampled: Scores
    base_sampled: Scores
    greedy: Scores
    base_greedy: Scores
    of_each_seed: list[float]


def _gains(measured: list[dict[int, list[Response]]], task: str, number: int) -> _Gains:
    def pooled(number: int, *, greedy: bool) -> Scores:
        return _mean([_scores(each[number], task, greedy=greedy) for each in measured])

    def gain(each: dict[int, list[Response]]) -> float:
        after, before = (_scores(each[n], task, greedy=False) for n in (number, 0))
        return fmean(after.values()) - fmean(before.values()) if after else 0.0

    return _Gains(
        pooled(number, greedy=False),
        pooled(0, greedy=False),
        pooled(number, greedy=True),
        pooled(0, greedy=True),
        [gain(each) for each in measured],
    )


def _scores(responses: list[Response], task: str, *, greedy: bool) -> Scores:
    found: dict[str, list[float]] = defaultdict(list)
    for r in responses:
        if r.task == task and (r.sample == GREEDY) == greedy:
            found[r.problem].append(float(r.right))
    return {problem: fmean(scores) for problem, scores in found.items()}


def _mean(of_seeds: list[Scores]) -> Scores:
    """Of the problems that all seeds have."""
    shared = [problem for problem in of_seeds[0] if all(problem in scores for scores in of_seeds)]
    return {problem: fmean(scores[problem] for scores in of_seeds) for problem in shared}


def _difference(before: Scores, after: Scores) -> Interval | None:
    shared = [problem for problem in after if problem in before]
    if not shared:
        return None
    return paired_difference([[before[p]] for p in shared], [[after[p]] for p in shared], _SEED)


def _arms(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs by what their recipes say beside the seed; an arm is named after its first run."""
    by_recipe: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        if not (run / "recipe.json").is_file():
            raise UserError(f"{run} is no run folder; name the `out` of a recipe")
        recipe: dict[str, Any] = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        for key in _OF_A_SEED:
            recipe.pop(key, None)
        by_recipe[json.dumps(recipe, sort_keys=True)].append(run)
    return {(members[0].name or str(members[0])): members for members in by_recipe.values()}


def _rounds(run: Path) -> list[int]:
    """The rounds that were measured, 0 for the base model."""
    names = (file.parent.name for file in run.glob("round-*/evaluation"))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"round-(\d+)", name)))


def _best(run: Path) -> int | None:
    file = run / "best.json"
    return json.loads(file.read_text())["round"] if file.exists() else None
