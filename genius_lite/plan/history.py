"""What a run folder holds already: stages and what they took, the rates of a rehearsal, how long responses are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.pipeline.job import Job
from genius_lite.plan.lengths import Lengths, described
from genius_lite.plan.memory import BASE
from genius_lite.plan.tokens import SamplingWork
from genius_lite.progress import Stage
from genius_lite.records import prepared
from genius_lite.results.rounds import Timing
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.folder import RECIPE, foreign_names, open_folder, round_name, size_of
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.weights.importing import FULL_PRECISION

FOLDER, FOUND = "rehearsal", "rehearsal.json"  # in a run folder, while it is rehearsed; the rates that came out
PREFILL = 0.5  # of a sampled token's time takes a prompt's, whose logits are not wanted
_IDLE = 1 / 3  # of the cores leaves a rehearsal to others: SmolLM2 and Qwen2.5-1.5B on two cores
_DESCRIBED = 64  # rollouts whose lengths stand for all
_IMPORTED = (folder.CHECKPOINT, FULL_PRECISION, folder.TIMINGS)  # what a plan leaves of a model


class Decode(msgspec.Struct, frozen=True):
    """Seconds that a file takes: to start, for every decode, and in it for each token that is sampled, or looked up."""

    start: float
    tick: float
    sampled: float
    scored: float

    def session(self, work: SamplingWork) -> float:
        """Add up the seconds of a worker that samples, from its start to its end."""
        return self.start + work.ticks * self.tick + (work.sampled + PREFILL * work.prefilled) * self.sampled

    def scoring(self, scored: float, prefilled: float) -> float:
        """Add up those of one that looks tokens up."""
        return self.start + (scored + PREFILL * prefilled) * self.scored

    def times(self, factor: float) -> Decode:
        """Return what a file takes that decodes so many times slower, and starts as fast."""
        return Decode(self.start, factor * self.tick, factor * self.sampled, factor * self.scored)


class Rates(msgspec.Struct, frozen=True):
    """Seconds that a rehearsal took.

    `base` is the user's file, `made` one that a round makes; `lengths` are those of rollouts, `answers` those of
    responses at the temperature of the evaluation. The learner takes `load` once, `forward` for a token in a pass, and
    `scored` for one of the final margin's, in all of its passes. `imported`, `rounded` (the base, in the types of the
    rounds) and `merged` are for the whole model. `others`: the share of the cores that other programs took meanwhile.
    """

    base: Decode
    made: Decode
    load: float
    forward: float
    scored: float
    imported: float
    rounded: float
    merged: float
    others: float
    lengths: Lengths
    answers: Lengths

    @property
    def disturbed(self) -> float:
        """Estimate the share of the rehearsal that was lost to other programs.

        A third of the cores was free for them: a quiet rehearsal, which imports and loads on one core, leaves it idle.
        """
        return max(0.0, 1 - (1 - self.others) / (1 - _IDLE))

    @staticmethod
    def read(out: Path) -> Rates | None:
        """Read what a rehearsal in this folder came to; None if there is none, or one of another version."""
        try:
            return msgspec.json.decode((out / FOUND).read_bytes(), type=prepared(Rates))
        except (OSError, msgspec.DecodeError):
            return None


@dataclass(frozen=True)
class DoneStages:
    """The stages that are `done`, with their rounds (0 before the first, the last one's for the export) and times.

    `searched` counts the queries that are done in a round whose rollouts are not finished, `bytes` are those on disk.
    """

    done: dict[tuple[str, int], Timing | None] = field(default_factory=dict)
    searched: dict[int, int] = field(default_factory=dict)
    bytes: int = 0

    def timings(self, stage: str) -> list[Timing]:
        return [timing for (name, _), timing in self.done.items() if timing and name == stage]

    def mean_seconds(self, stage: str) -> float | None:
        """Average the rounds so far; None if there is none."""
        known = [timing.whole_seconds for timing in self.timings(stage) if timing.whole_seconds is not None]
        return sum(known) / len(known) if known else None


def look_back(out: Path, rounds: int) -> DoneStages:
    """Read a run folder, which need not exist."""
    if not (out / RECIPE).is_file():
        return DoneStages()
    run = RunFolder(out)
    done = {(str(stage) if number else BASE, number): timing for (stage, number), timing in run.stages_done.items()}
    if run.imported:
        done[Stage.IMPORT, 0] = RoundFolder(0, out).total(Stage.IMPORT)
    if (out / folder.EXPORT).exists():
        done[Stage.EXPORT, rounds] = None
    searched = {here.number: len(here.rollouts) for here in run.rounds if not here.done(Stage.ROLLOUTS)}
    return DoneStages(done, searched, size_of(out))


def same_run(out: Path, identity: dict[str, Any]) -> bool:
    """Say whether the folder is free, or was made by the recipe with this identity, so that a run goes on in it."""
    return not (out / RECIPE).is_file() or RunFolder(out).recipe == identity


def known_lengths(job: Job) -> Lengths | None:
    """Look up how long responses are in the run's folder: of its first round, or of a rehearsal."""
    out = Path(job.recipe.out)
    if not same_run(out, job.identity):
        return None
    first = RoundFolder(1, out / round_name(1))
    if not first.done(Stage.PAIRS):
        return rates.lengths if (rates := Rates.read(out)) else None
    rollouts = list(first.rollouts[:_DESCRIBED])
    with Vocabulary.open(job.source.path) as vocabulary:
        return described(rollouts, vocabulary, job.recipe.foresight, "round 1")


def cut_off(job: Job) -> str | None:
    """Warn that too many responses are cut off, by what the run's folder knows of them."""
    lengths = known_lengths(job)
    warning = lengths.cut_off(job.recipe.foresight) if lengths else None
    return f"{warning} ({lengths.ends.line})" if warning and lengths and lengths.ends else warning


def holds_another(out: Path, identity: dict[str, Any]) -> bool:
    """Say whether a folder holds another recipe's run, and not only what a plan left, which gives way."""
    names = foreign_names(out) if out.is_dir() else set[str]()
    planned = names & {FOLDER, FOUND} and names <= {FOLDER, FOUND, RECIPE, *_IMPORTED}
    return not same_run(out, identity) and not planned


def drop_rehearsal(out: Path, identity: dict[str, Any]) -> bool:
    """Remove what an interrupted rehearsal left, and rehearsals of other recipes: a plan binds nobody.

    A folder that holds nothing but another recipe's becomes this one's. The import stays if the model is the same.
    Returns whether a whole rehearsal went, by which the times of a run would have been foretold.

    Raises:
        UserError: the folder is in use, or has a link in it.
    """
    names = foreign_names(out) if out.is_dir() else set[str]()
    same = same_run(out, identity)
    if FOLDER not in names if same else holds_another(out, identity):
        return False
    recorded = RunFolder(out).recipe
    another = any(recorded.get(key) != identity[key] for key in ("model", "weights"))
    with open_folder(out, recorded) as run:
        for name in [FOLDER, *([] if same else [FOUND]), *(_IMPORTED if another else [])]:
            remove(run / name)
        run.put_json(RECIPE, identity)
    return not same and FOUND in names
