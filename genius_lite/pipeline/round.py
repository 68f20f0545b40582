"""What the stages of a run share, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import msgspec

from genius_lite.errors import Stop, UserError
from genius_lite.hardware.system import peak_memory
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup
from genius_lite.pipeline.job import Job
from genius_lite.progress import Advance, Progress, Stage
from genius_lite.records import Query
from genius_lite.report.tracking import Tracker
from genius_lite.results.rounds import Stats, Timing
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.folder import RunDir, round_name
from genius_lite.rundir.lines import RecordLog
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.adapter import write_lora
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.untrusted import is_vouched, prove, vouch


@dataclass(frozen=True)
class Policy:
    """The model that samples a round: a GGUF, and the cumulative adapter that it stands for (None: the base model).

    Either the adapter was merged into the GGUF, or `lora` is the same adapter for llama.cpp, applied while it runs.
    """

    gguf: Path
    adapter: Path | None = None
    lora: Path | None = None

    def settings(self, engine: EngineSettings) -> EngineSettings:
        """Set up a sampler for it, once llama.cpp is known to survive its file.

        Raises:
            UserError: it does not: the file is not as this program made it.
        """
        prove(self.gguf)
        return msgspec.structs.replace(engine, lora=str(self.lora or ""))


@dataclass(frozen=True)
class Session:
    """An open run: its job, the imported base model, how the sampler is set, and the folder that this process holds."""

    job: Job
    base: Base
    engine: EngineSettings
    run: RunDir
    progress: Progress
    stop: Stop
    tracker: Tracker
    group: ProcessGroup = SINGLE_PROCESS

    def round(self, number: int) -> Round:
        """Return the session at a round, for its stages; round 0 is the base model, only evaluated."""
        return Round(**{field.name: getattr(self, field.name) for field in fields(Session)}, number=number)

    @property
    def folder(self) -> RunFolder:
        """What the run's folder says."""
        return RunFolder(self.run.path)

    @property
    def own(self) -> Policy:
        """The user's own file, which samples the first round."""
        return Policy(self.job.source.path)

    @property
    def baseline(self) -> Policy:
        """The base model that rounds are told against, once `stages.baseline` has seen to it."""
        made = self.rounded / folder.BASELINE
        return Policy(made if made.exists() else self.base.gguf.path)

    @property
    def rounded(self) -> RunDir:
        """The folder of the base model in the types of the rounds; there once something is built in it."""
        return RunDir(self.run / folder.ROUNDED)

    def write_lora(self, adapter: Path, out: Path) -> None:
        """Write an adapter as llama.cpp applies it at run time; being this process' own, it needs no proof."""
        write_lora(self.base, adapter, out)
        vouch(out)


@dataclass(frozen=True)
class Round(Session):
    """A session at a round: what its stages are given."""

    number: int = 0

    @cached_property
    def here(self) -> RunDir:
        return self.run.round(self.number)

    @property
    def queries(self) -> list[Query]:
        return self.job.searched(self.number)

    @property
    def sampler_log(self) -> Path:
        """What llama.cpp prints in this round."""
        return self.here / "sampler.log"

    def folder_of(self, policy: Policy) -> RunDir:
        """Return where the policy's evaluation goes; the base model that rounds are told against has its own folder."""
        return self.rounded if self.number == 0 and policy.gguf != self.job.source.path else self.here

    def enter(self, stage: Stage) -> None:
        """Begin a stage of the round.

        Raises:
            Stopped: the run was asked to stop.
            UserError: the model has gone.
        """
        self.stop.check()
        self.progress.enter(self.number, stage)
        if gone := next((file for file in self.job.source.files if not file.exists()), None):
            raise UserError(
                f"{gone} is not there any more: the model was moved or deleted while the run went on; put it back, and "
                "the same command goes on"
            )

    @property
    def earlier(self) -> list[RoundFolder]:
        """What the rounds before this one left, whatever folder it is in."""
        return [RoundFolder(number, self.run / round_name(number)) for number in range(1, self.number)]

    def reopen(self) -> None:
        """Drop what the run came to, if it was over: `pairs.at_least` was lowered, or a round is made anew."""
        for name in (folder.SUMMARY, folder.EXPORT, folder.BEST):
            remove(self.run / name)

    def note_origin(self, policy: Policy) -> None:
        """Note which file samples a later round until it is trained: its shards are to be sampled from that one."""
        if self.number > 1 and not (self.here / folder.ADAPTER).exists():
            self.here.put_json(folder.ORIGIN, {"model": None if policy.lora else sha256([policy.gguf])})

    @property
    def key(self) -> tuple[int, int]:
        """Of the round's random generators."""
        return (self.job.recipe.seed, self.number)


def drop_foreign(made: Path) -> None:
    """Delete a file that this process did not make, where making it anew takes less than proving it."""
    if made.exists() and not is_vouched(made):
        remove(made)


@contextmanager
def timed(parts: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to the part `name` of a stage."""
    start = time.monotonic()
    try:
        yield
    finally:
        parts[name] = parts.get(name, 0.0) + time.monotonic() - start


def note_time(
    here: RunDir,
    stage: Stage,
    seconds: float,
    amount: float,
    sampler: Stats | None = None,
    parts: dict[str, float] | None = None,
    untimed: float = 0.0,
) -> None:
    """Add to the timings of a round, or of the run; an interrupted stage that goes on later has several lines."""
    rounded = {name: round(part, 3) for name, part in (parts or {}).items()}
    with closing(RecordLog(here / folder.TIMINGS, Timing)) as log:
        log.append(Timing(stage, round(seconds, 3), amount, peak_memory(), sampler, rounded, untimed))


def note_untimed(here: RunDir, stage: Stage, there: float) -> None:
    """Note what there is of a stage and no line accounts for: others made it, or a process that was killed."""
    noted = RoundFolder(0, here.path).total(stage)
    if (untimed := there - (noted.whole if noted else 0.0)) > 0:
        note_time(here, stage, 0.0, 0.0, untimed=untimed)


@contextmanager
def counted(here: RunDir, stage: Stage, began: float, advance: Advance) -> Iterator[Advance]:
    """Pass on what a stage advances by, and note that with the seconds since `began`, also when it is interrupted."""
    made = 0.0

    def count(n: float) -> None:
        nonlocal made
        made += n
        advance(n)

    try:
        yield count
    finally:
        if made:
            note_time(here, stage, time.monotonic() - began, made)
