"""A run folder, finished or not, as one record: what its report shows. Reads only; a run may be going on in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from genius_lite.evaluate.guard import SignalValue, signal_values
from genius_lite.evaluate.record import read_evaluation
from genius_lite.evaluate.results import mean_score
from genius_lite.progress import Stage, named
from genius_lite.records import PreferencePair
from genius_lite.report.status import next_stage
from genius_lite.report.trees import Explorer, calibrates, explore, votes_weigh
from genius_lite.results.evaluation import Alarm, Signals, TaskResult
from genius_lite.results.rounds import RoundReport, Summary, Timing
from genius_lite.rundir.documents import RecordedSource
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.text import amount

_NEEDED = (
    *("rounds", "queries", "model", "tasks", "foresight.tau", "learner.holdout", "learner.alpha"),
    *("learner.calibration", "evaluate.queries", "quantize.keep"),
)
"""Of the recipe; `weights` and `guard` may be missing."""


@dataclass(frozen=True)
class PairFigures:
    """Of a round's pairs: means over them; `relaxed` is the share whose calibration weight is below 1."""

    chosen_tokens: float
    rejected_tokens: float
    gap: float
    weight: float
    relaxed: float
    lead: float


@dataclass(frozen=True)
class RoundData:
    """A round, as far as it went, or the base model (0); `report` has what its files say, `readings` the guard's."""

    name: str
    report: RoundReport
    finished: bool = False
    signals: Signals | None = None
    readings: dict[str, SignalValue] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    pairs: PairFigures | None = None

    @property
    def number(self) -> int:
        return self.report.round

    @property
    def tasks(self) -> list[TaskResult]:
        return self.report.evaluation


Answered = list[tuple[RoundData, TaskResult]]
"""All that answered a task, and how."""


@dataclass(frozen=True)
class RunData:
    """A run. `best` is None until it is decided; `imported` is the time of what precedes the rounds.

    `own` is the user's own file, where the base model that rounds are told against is another one. `calibrates` and
    `votes_weigh` say what a pair's loss is weighed by.
    """

    name: str
    recipe: dict[str, Any]
    model: RecordedSource
    now: str
    summary: Summary | None
    best: int | None
    own: RoundData | None
    base: RoundData
    rounds: list[RoundData]
    imported: list[Timing]
    exported: dict[str, str]
    explorer: Explorer
    calibrates: bool
    votes_weigh: bool

    @property
    def policies(self) -> list[RoundData]:
        """The base model and the rounds."""
        return [self.base, *self.rounds]

    @property
    def measured(self) -> list[RoundData]:
        """These, after the user's own file if that is another one."""
        return [*([self.own] if self.own else []), *self.policies]

    @property
    def by_task(self) -> dict[str, Answered]:
        """Each task that the base model or a round answered."""
        answered = [(policy, task) for policy in self.measured for task in policy.tasks]
        names = dict.fromkeys(task.task for policy in self.policies for task in policy.tasks)
        return {name: [(policy, task) for policy, task in answered if task.task == name] for name in names}

    @property
    def alarms(self) -> list[tuple[str, Alarm]]:
        """Each alarm of the guard, behind its round's name."""
        return [(r.name, alarm) for r in self.rounds for alarm in r.report.alarms]

    @property
    def shown(self) -> RoundData:
        """The round that is set beside the base model: the best, else the latest that was measured."""
        if chosen := [r for r in self.rounds if r.number == self.best]:
            return chosen[0]
        measured = [r for r in self.rounds if r.tasks or r.signals]
        return measured[-1] if measured else self.base


def gather(path: Path) -> RunData:
    """Read all of a run folder that its report shows.

    Raises:
        UserError: it is no run folder, a file in it is damaged, or another version wrote it.
    """
    run, rounds = RunFolder(path), list[RoundData]()
    run.require(*_NEEDED)
    base = _base(run.base, named(0))
    own = None if run.base.path == run.own.path else _base(run.own, "your file")
    for here in run.rounds:
        rounds.append(_round(run, here, base.signals, rounds))
    return RunData(
        name=path.resolve().name,
        recipe=run.recipe,
        model=run.source,
        now=_now(run),
        summary=run.summary,
        best=run.best,
        own=own,
        base=base,
        rounds=rounds,
        imported=run.timings,
        exported=run.checksums,
        explorer=explore(run),
        calibrates=calibrates(run.recipe),
        votes_weigh=votes_weigh(run.recipe),
    )


def _base(here: RoundFolder, name: str) -> RoundData:
    """Read the base model, or the user's own file."""
    if not here.done(Stage.EVALUATE):
        return RoundData(name, RoundReport(0), timings=here.totals)
    found = read_evaluation(here)
    report = RoundReport(0, score=mean_score(found.scores), evaluation=found.tasks)
    return RoundData(name, report, True, found.signals, timings=here.totals)


def _round(run: RunFolder, here: RoundFolder, base: Signals | None, earlier: Sequence[RoundData]) -> RoundData:
    report, name, pairs = here.report, named(here.number), _pair_figures(here, run.recipe)
    if report and (metrics := report.metrics):
        alike = earlier and run.recipe.get("round_queries") is None  # other questions have other values
        found = signal_values(metrics, base, earlier[0].report.metrics if alike else None)
        readings = {reading.signal: reading for reading in found}
        return RoundData(name, report, True, metrics.signals, readings, here.totals, pairs)
    report, signals = here.made(), None
    if here.done(Stage.EVALUATE):
        found = read_evaluation(here, run.base, run.recipe["rounds"])
        report, signals = msgspec.structs.replace(report, evaluation=found.tasks), found.signals
    return RoundData(name, report, False, signals, timings=here.totals, pairs=pairs)


def _pair_figures(here: RoundFolder, recipe: dict[str, Any]) -> PairFigures | None:
    learner = recipe["learner"]

    def of_pair(p: PreferencePair) -> tuple[float, ...]:
        weight = p.calibration_weight(learner["alpha"], learner["calibration"])
        gap = p.chosen_value - p.rejected_value
        return len(p.chosen_tokens), len(p.rejected_tokens), gap, weight, weight < 1, p.lead

    found = np.fromiter(map(of_pair, here.pairs), np.dtype((float, 6)))
    return PairFigures(*found.mean(axis=0).tolist()) if len(found) else None


def _now(run: RunFolder) -> str:
    """Say what the run is at."""
    if summary := run.summary:
        return f"stopped: {summary.stopped}" if summary.stopped else "finished"
    number, stage = next_stage(run)
    at = f"not finished: {named(number)}, {stage}"
    if stage != Stage.ROLLOUTS:
        return at
    return f"{at} of {len(run.round(number).rollouts)} of {amount(run.searched, 'queries')}"
