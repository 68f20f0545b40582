"""What a run folder says, typed. Nothing is written; a run may be going on: what is not whole yet is not there.

The one reader of run folders: reports, views, plans, comparisons and exports all ask here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import UserError
from genius_lite.progress import Stage
from genius_lite.records import FailedQuery, PreferencePair, Rollout, held_count
from genius_lite.results.evaluation import Response, Signals
from genius_lite.results.rounds import (
    SWEPT,
    Quantized,
    RolloutFigures,
    RoundReport,
    SampledFrom,
    Summary,
    Timing,
    TrainReport,
)
from genius_lite.rundir import folder
from genius_lite.rundir.documents import (
    RecordedBest,
    RecordedRecipe,
    RecordedShard,
    RecordedSource,
    as_typed,
    read_json,
    read_typed,
)
from genius_lite.rundir.folder import refuse_links, round_name
from genius_lite.rundir.lines import Lines, sound_records

_MADE = {
    Stage.ROLLOUTS: folder.PAIRS,
    Stage.PAIRS: folder.PAIRS,
    Stage.TRAIN: folder.ADAPTER,
    Stage.MERGE: folder.POLICY,
    Stage.EVALUATE: folder.EVALUATION,
}
"""What is there once a stage of a round is over. Rollouts are when pairs were made of them."""


class RunFolder:
    """A run's folder.

    Args:
        path: the `out` of a recipe.

    Raises:
        UserError: it is no run folder, or holds a link or a pipe. What is asked of it later raises UserError where
            another version wrote it.
    """

    def __init__(self, path: Path):
        self.path = path
        if os.path.lexists(path / folder.RECIPE):  # what is no run is told so, and not looked through
            refuse_links(path)
        found = read_json(path / folder.RECIPE)
        if found is None and not os.access(path if path.is_dir() else path.parent, os.R_OK | os.X_OK):
            raise UserError(
                f"{path}: permission denied; it is for its owner alone, who may give it to others with chmod"
            )
        if not isinstance(found, dict):
            raise UserError(f"{path} is no run folder; name the `out` of a recipe")
        as_typed(found, RecordedRecipe, path / folder.RECIPE)
        self.recipe: dict[str, Any] = found
        """The identity of the run: its recipe, with model, queries and tasks by content."""

    @property
    def imported(self) -> bool:
        """Whether the learner's copy of the model is there."""
        return (self.path / folder.CHECKPOINT).exists()

    @property
    def source(self) -> RecordedSource:
        """Where the model came from; empty before it is imported."""
        return read_typed(self.path / folder.CHECKPOINT / folder.SOURCE, RecordedSource) or RecordedSource()

    def require(self, *keys: str) -> None:
        """Refuse a folder whose recipe lacks one of these keys (`foresight.tau`), by a UserError with the first."""
        for key in keys:
            found: Any = self.recipe
            for part in key.split("."):
                found = found.get(part, msgspec.UNSET) if isinstance(found, dict) else msgspec.UNSET
            if found is msgspec.UNSET:
                raise UserError(f"{self.path / folder.RECIPE} has no {key}: another version of genius-lite made it")

    @property
    def queries(self) -> int:
        """How many queries the recipe has."""
        self.require("queries")
        return int(self.recipe["queries"].partition(",")[0])

    @property
    def searched(self) -> int:
        """How many of them a round searches; others are held out, or another round's."""
        self.require("learner.holdout", "evaluate.queries", "round_queries")
        held = held_count(self.queries, self.recipe["learner"]["holdout"], self.recipe["evaluate"]["queries"])
        searched = min(self.queries - held, self.recipe["round_queries"] or self.queries)
        return self.shard.of(searched) if self.shard else searched

    @property
    def shard(self) -> RecordedShard | None:
        """What this folder is a shard of, if it is no whole run."""
        given = self.recipe.get("shard")
        return None if given is None else as_typed(given, RecordedShard, self.path / folder.RECIPE)

    @property
    def timings(self) -> list[Timing]:
        """What precedes the rounds took."""
        return RoundFolder(0, self.path).timings

    @property
    def rounds(self) -> list[RoundFolder]:
        """The rounds that have begun, in order, without the base model."""
        found = (path.name.removeprefix(round_name("")) for path in self.path.glob(round_name("*")))
        return [self.round(number) for number in sorted(int(n) for n in found if n.isdecimal()) if number]

    def round(self, number: int) -> RoundFolder:
        """Return round `number`, begun or not; 0 is the base model that rounds are told against."""
        return RoundFolder(number, self.path / round_name(number)) if number else self.base

    @property
    def own(self) -> RoundFolder:
        """The user's own file as round 0."""
        return RoundFolder(0, self.path / round_name(0))

    @property
    def base(self) -> RoundFolder:
        """The base model that rounds are told against: in their types, where the user's file has others."""
        rounded = RoundFolder(0, self.path / folder.ROUNDED)
        return rounded if rounded.done(Stage.EVALUATE) else self.own

    @property
    def rounded_base(self) -> Path | None:
        """The base model in the types of the rounds, if the run made a file of it."""
        made = self.path / folder.ROUNDED / folder.BASELINE
        return made if made.exists() else None

    @property
    def reports(self) -> list[RoundReport]:
        """Those of the finished rounds."""
        return [report for here in self.rounds if (report := here.report)]

    @property
    def best(self) -> int | None:
        """The round that was chosen; None before it is decided."""
        found = read_typed(self.path / folder.BEST, RecordedBest)
        return found.round if found else None

    @property
    def summary(self) -> Summary | None:
        """What the finished run says of itself."""
        return read_typed(self.path / folder.SUMMARY, Summary)

    @property
    def exported(self) -> list[Path]:
        """The GGUFs of its export."""
        return sorted((self.path / folder.EXPORT).glob("*.gguf"))

    @property
    def checksums(self) -> dict[str, str]:
        """File of the export -> SHA-256."""
        file = self.path / folder.EXPORT / "SHA256SUMS"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    @property
    def damaged(self) -> list[str]:
        """Documents that are there and cannot be read; all that reads the folder passes them over."""
        places = [self.path, self.own.path, self.path / folder.ROUNDED, *(here.path for here in self.rounds)]
        places += [place / name for place in places for name in (folder.ADAPTER, folder.EVALUATION)]
        found = (file for place in places for file in sorted(place.glob("*.json")))
        return [str(file.relative_to(self.path)) for file in found if read_json(file) is None]

    @property
    def stages_done(self) -> dict[tuple[Stage, int], Timing | None]:
        """The stages that are over, with their rounds (0: the user's own file), and what they took if that is known.

        The sweep of the base model's temperatures is no part of it: no round has one.
        """
        found = dict[tuple[Stage, int], Timing | None]()
        for here in (self.own, *self.rounds):
            totals = _added_up(timing for timing in here.timings if SWEPT not in timing.parts)
            found |= {(stage, here.number): totals.get(stage) for stage in _MADE if here.done(stage)}
        return found

    def stage_seconds(self) -> dict[Stage, float]:
        """Say what each stage takes, by the latest round that timed it; the base model's evaluation may stand in."""
        done = self.stages_done
        found = {stage: took for (stage, _), one in done.items() if one and (took := one.whole_seconds) is not None}
        return found | {stage: 0.0 for stage, _ in done if stage == Stage.PAIRS}


class RoundFolder:
    """The folder of a round, or of the base model (round 0), which is only evaluated."""

    def __init__(self, number: int, path: Path):
        self.number, self.path = number, path

    def done(self, stage: Stage) -> bool:
        """Say whether a stage of this round is over."""
        made = self.path / _MADE[stage]
        return made.is_dir() if stage in (Stage.TRAIN, Stage.EVALUATE) else made.exists()

    @property
    def adapter(self) -> Path:
        return self.path / folder.ADAPTER

    @property
    def policy(self) -> Path:
        """The round's GGUF."""
        return self.path / folder.POLICY

    @property
    def timings(self) -> list[Timing]:
        """A line for each stage; for one that was interrupted a line for each part."""
        return [timing for timing in sound_records(self.path / folder.TIMINGS, Timing) if timing.stage in {*Stage}]

    @property
    def totals(self) -> list[Timing]:
        """The timings, one for each stage."""
        return list(_added_up(self.timings).values())

    def total(self, stage: Stage) -> Timing | None:
        """Say what a stage took, over all interruptions; None if it was never run."""
        return next((timing for timing in self.totals if timing.stage == stage), None)

    @property
    def rollouts(self) -> Lines[Rollout]:
        return Lines(self.path / folder.ROLLOUTS, Rollout)

    @property
    def failed(self) -> Lines[FailedQuery]:
        """Queries that the sampler does not survive."""
        return Lines(self.path / folder.FAILED_FILE, FailedQuery)

    @property
    def pairs(self) -> Lines[PreferencePair]:
        return Lines(self.path / folder.PAIRS, PreferencePair)

    @property
    def training(self) -> TrainReport | None:
        return read_typed(self.path / folder.ADAPTER / folder.TRAINED, TrainReport)

    @property
    def quantized(self) -> Quantized | None:
        return read_typed(self.path / folder.QUANTIZED, Quantized)

    @property
    def signals(self) -> Signals | None:
        """Of the responses to held-out queries; None where there is none."""
        return read_typed(self.path / folder.EVALUATION / folder.SIGNALS, Signals)

    @property
    def responses(self) -> list[Response]:
        """To the problems of the tasks; none before they are all there."""
        return list(Lines(self.path / folder.EVALUATION / folder.RESPONSES, Response))

    @property
    def report(self) -> RoundReport | None:
        """The finished round's report."""
        return read_typed(self.path / folder.REPORT, RoundReport)

    def made(self) -> RoundReport:
        """Gather the figures of a round's files, without its evaluation."""
        rollouts, pairs, sampling = self.rollouts, self.pairs, self.total(Stage.ROLLOUTS)
        chosen = read_typed(self.path / folder.SAMPLED, SampledFrom)
        rate = sampling.amount / sampling.seconds if sampling and sampling.seconds else None
        return RoundReport(
            self.number,
            rollouts=RolloutFigures.of(rollouts, rate) if rollouts else None,
            sampled_from=chosen.file if chosen else None,
            failed=len(self.failed),
            pairs=len(pairs) if self.done(Stage.PAIRS) else None,
            pairs_left_out=read_typed(self.path / folder.LEFT_OUT, dict[str, int]) or {},
            training=self.training,
            quantized=self.quantized,
            gguf_bytes=self.policy.stat().st_size if self.policy.exists() else None,
        )


def _added_up(timings: Iterable[Timing]) -> dict[str, Timing]:
    found = dict[str, Timing]()
    for timing in timings:
        found[timing.stage] = found[timing.stage].plus(timing) if timing.stage in found else timing
    return found
