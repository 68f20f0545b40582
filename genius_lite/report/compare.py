"""Runs side by side: what each round gained over its base model, and how the first run's rounds compare."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import msgspec
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.evaluate.statistics import PooledDifference, pooled_difference
from genius_lite.progress import Stage
from genius_lite.report.console import make_table
from genius_lite.report.summary import in_points
from genius_lite.results.evaluation import GREEDY, Response
from genius_lite.rundir.reader import RunFolder

ALL_TASKS = "mean of all tasks"

# Of a run's identity, what sets no two arms apart: the seed decides which queries are held out and watched, and a
# template may ask for the day on which the run began.
_SEED_KEYS = ("seed", "watched", "template")

ScoresOfSeed = dict[str, float]
"""Problem -> share of right responses, of one seed."""


class Row(msgspec.Struct, frozen=True):
    """A round of an arm on a task; or on all of them, each weighing alike (`task` is ALL_TASKS then).

    An arm is all runs whose recipes differ in nothing but the seed, one of each; `seeds` is their number,
    `seed_spread` the standard deviation of their sampled gains (None for one seed). Differences are paired by
    problem, and their intervals over problems and seeds, or over problems only. `to_first` and `greedy_to_first`
    set the accuracy beside that of the first arm's same round, on the problems that both have: seed by seed where
    both have the same seeds, else as independent ones.
    """

    task: str
    arm: str
    seeds: int
    round: int
    best: bool
    sampled: float | None
    sampled_gain: PooledDifference | None
    greedy: float | None
    greedy_gain: PooledDifference | None
    seed_spread: float | None
    to_first: PooledDifference | None
    greedy_to_first: PooledDifference | None


def compare_runs(runs: Sequence[Path]) -> list[Row]:
    """Make a row for each task, arm and round, and where an arm has several tasks, one for their mean.

    Raises:
        UserError: a folder is no run, or its rounds were not measured on any task.
    """
    found: list[Row] = []
    first: dict[tuple[tuple[str, ...], int], tuple[_Answers, _Answers]] = {}
    for place, arm in enumerate(_arms(runs)):
        for tasks in arm.groups_of_tasks():
            base, base_greedy = (arm.answers(0, tasks, greedy=greedy) for greedy in (False, True))
            for number in arm.rounds():
                tuned, tuned_greedy = (arm.answers(number, tasks, greedy=greedy) for greedy in (False, True))
                gain = _difference(base, tuned)
                spread = gain.over_seeds if gain else None
                those = first.get((tasks, number))
                if place == 0:
                    first[tasks, number] = tuned, tuned_greedy
                row = Row(
                    task=tasks[0] if len(tasks) == 1 else ALL_TASKS,
                    arm=arm.name,
                    seeds=len(arm.seeds),
                    round=number,
                    best=arm.best == {number},
                    sampled=tuned.accuracy(),
                    sampled_gain=gain,
                    greedy=tuned_greedy.accuracy(),
                    greedy_gain=_difference(base_greedy, tuned_greedy),
                    seed_spread=None if spread is None else spread * len(arm.seeds) ** 0.5,
                    to_first=_difference(those[0], tuned) if those else None,
                    greedy_to_first=_difference(those[1], tuned_greedy) if those else None,
                )
                found.append(row)
    return found


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each task, the mean of all tasks last."""
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.task == ALL_TASKS):
        by_task[row.task].append(row)
    for task, of_task in by_task.items():
        table = make_table("run", "#round", "#answers", "#right", "#gain", "#to the first", title=task)
        for row in of_task:
            named = row.arm + (f"\n{row.seeds} seeds" if row.seeds > 1 else ""), f"{row.round}{'*' if row.best else ''}"
            sampled = ("sampled", row.sampled, row.sampled_gain, row.to_first)
            greedy = ("greedy", row.greedy, row.greedy_gain, row.greedy_to_first)
            asked_for = [kind for kind in (sampled, greedy) if kind[1] is not None]
            for kind, accuracy, gain, to_first in asked_for or [sampled]:
                right = "-" if accuracy is None else f"{accuracy:.1%}"
                table.add_row(*named, kind, right, _in_lines(gain), _in_lines(to_first))
                named = "", ""
        console.print(table)
    console.print(
        "Gains over the base model, and differences to the first run, in points with 95 % intervals over problems and "
        "seeds; below them the standard error that each of the two adds. Over problems only: another seed may give "
        "another gain. To the first -: this is it, or it has no such round, or no such problems. * the run's best "
        "round, which other problems chose; of a task with fewer than 40, or whose `use` is both, the same ones, which "
        "flatters it: its report has wider intervals there (Bonferroni)."
    )


def _in_lines(gain: PooledDifference | None) -> str:
    """Write a gain in lines: three intervals do not fit beside each other into 80 columns."""
    if not gain:
        return "-"
    lines = in_points(gain).replace(" [", "\n[")
    if gain.over_seeds is None:
        return f"{lines}\nover problems\nonly"
    return f"{lines}\nproblems {100 * gain.over_problems:.1f}\nseeds {100 * gain.over_seeds:.1f}"


class _Answers(msgspec.Struct, frozen=True):
    """One kind of answers of an arm's round: for each task the scores of each seed."""

    seeds: list[int]
    of_tasks: list[list[ScoresOfSeed]]

    def accuracy(self) -> float | None:
        """Average over the tasks, on the problems that all seeds have; None where a task has none."""
        shared = [_shared(of_seeds) for of_seeds in self.of_tasks]
        if not all(shared):
            return None
        by_task = zip(self.of_tasks, shared, strict=True)
        return fmean(fmean(scores[p] for scores in of_seeds for p in problems) for of_seeds, problems in by_task)


class _Arm(msgspec.Struct, frozen=True):
    """Runs of one recipe, by seed. `responses` has for each of them its rounds' responses, 0 for the base model's."""

    name: str
    seeds: list[int]
    responses: list[dict[int, list[Response]]]
    best: set[int | None]

    def groups_of_tasks(self) -> Iterator[tuple[str, ...]]:
        """Yield each task, and if there are several, all of them."""
        tasks = tuple(dict.fromkeys(r.task for r in self.responses[0][0] if r.use != "choose"))
        yield from ((task,) for task in tasks)
        if len(tasks) > 1:
            yield tasks

    def rounds(self) -> list[int]:
        """List the rounds that every seed has."""
        return sorted(set.intersection(*(set(of_seed) for of_seed in self.responses)) - {0})

    def answers(self, number: int, tasks: tuple[str, ...], *, greedy: bool) -> _Answers:
        of_tasks = [[_scores(of_seed[number], task, greedy=greedy) for of_seed in self.responses] for task in tasks]
        return _Answers(self.seeds, of_tasks)


def _scores(responses: list[Response], task: str, *, greedy: bool) -> ScoresOfSeed:
    found: dict[str, list[float]] = defaultdict(list)
    for r in responses:
        if r.task == task and r.use != "choose" and (r.sample == GREEDY) == greedy:
            found[r.problem].append(float(r.right))
    return {problem: fmean(scores) for problem, scores in found.items()}


def _shared(of_seeds: list[ScoresOfSeed]) -> list[str]:
    """List the problems that all of them have."""
    return [problem for problem in of_seeds[0] if all(problem in scores for scores in of_seeds)]


def _difference(before: _Answers, after: _Answers) -> PooledDifference | None:
    """Compare on the problems that both have; None where there is none of a task."""
    problems = [_shared([*b, *a]) for b, a in zip(before.of_tasks, after.of_tasks, strict=True)]
    if not all(problems):
        return None
    base, tuned = (
        [[[scores[p] for p in shared] for scores in of_seeds] for of_seeds, shared in zip(tasks, problems, strict=True)]
        for tasks in (before.of_tasks, after.of_tasks)
    )
    return pooled_difference(base, tuned, paired=before.seeds == after.seeds)


def _arms(paths: Sequence[Path]) -> Iterator[_Arm]:
    """Group runs by what recipes say beside the seed; an arm is read when its turn comes, and named after its first.

    A seed counts once in an arm: a run that is given twice, or its copy, is an arm of its own, and no second seed.
    """
    arms: dict[tuple[str, int], list[RunFolder]] = defaultdict(list)
    times: Counter[tuple[str, str]] = Counter()
    for run in map(RunFolder, paths):
        run.require("seed")
        template = {k: v for k, v in run.recipe.get("template", {}).items() if k != "today"}
        common = json.dumps([template, {k: v for k, v in run.recipe.items() if k not in _SEED_KEYS}], sort_keys=True)
        times[seed := (common, json.dumps(run.recipe["seed"]))] += 1
        arms[common, times[seed]].append(run)
    names = Counter(path.name for path in {runs[0].path for runs in arms.values()})
    for runs in arms.values():
        path = runs[0].path
        yield _arm(path.name if names[path.name] == 1 and path.name else str(path), runs)


def _arm(name: str, runs: list[RunFolder]) -> _Arm:
    runs = sorted(runs, key=lambda run: run.recipe["seed"])  # so that two arms' seeds are in the same order
    responses = [
        {here.number: here.responses for here in (run.base, *run.rounds) if here.done(Stage.EVALUATE)} for run in runs
    ]
    for run, of_seed in zip(runs, responses, strict=True):
        if 0 in of_seed and not of_seed[0]:
            raise UserError(f"{run.path}: this run has measured no task; add some to `evaluate.tasks` of its recipe")
        if 0 not in of_seed or len(of_seed) == 1:
            raise UserError(f"{run.path}: no round of it is measured yet; genius-lite status says where it stands")
    return _Arm(name, [run.recipe["seed"] for run in runs], responses, {run.best for run in runs})
