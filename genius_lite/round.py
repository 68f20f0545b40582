"""What the stages of a round share, and how long they took."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from genius_lite.hardware import peak_memory
from genius_lite.job import Job
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup
from genius_lite.report.progress import Progressor
from genius_lite.report.tracking import Tracker
from genius_lite.rundir import ROUNDED, RunDir, rounded_base
from genius_lite.sampler.messages import EngineSettings
from genius_lite.stopping import Stop
from genius_lite.weights.importing import Base


@dataclass(frozen=True)
class Policy:
    """What samples the next round: a GGUF, and the cumulative adapter that it stands for (None: the base model).

    Either the adapter was merged into the GGUF, or `lora` is the same adapter for llama.cpp, applied while it runs.
    """

    gguf: Path
    adapter: Path | None = None
    lora: Path | None = None

    def settings(self, engine: EngineSettings) -> EngineSettings:
        return msgspec.structs.replace(engine, lora=str(self.lora or ""))


@dataclass(frozen=True)
class Round:
    """What the stages of a round share; `run` is the run's folder. Round 0 is the base model, only evaluated."""

    number: int
    job: Job
    base: Base
    engine: EngineSettings
    run: RunDir
    progress: Progressor
    stop: Stop
    tracker: Tracker
    group: ProcessGroup = SINGLE_PROCESS

    @cached_property
    def here(self) -> RunDir:
        """The round's own folder."""
        return self.run.sub(f"round-{self.number}")

    @cached_property
    def rounded(self) -> RunDir:
        """The folder of the base model in the types of the rounds."""
        return self.run.sub(ROUNDED)

    def folder_of(self, policy: Policy) -> RunDir:
        """Where the policy's evaluation goes: of the base model, that which the rounds are told against is apart."""
        return self.rounded if self.number == 0 and policy.gguf != self.job.source.path else self.here

    @property
    def baseline(self) -> Policy:
        """The base model that rounds are told against, once `stages.baseline` has seen to it."""
        return Policy(rounded_base(self.run.path) or self.base.gguf.path)

    def enter(self, kind: str) -> None:
        """A stage of the round begins.

        Raises:
            Stopped: the run was asked to stop.
        """
        self.stop.check()
        self.progress.enter(self.number, kind)

    @property
    def key(self) -> tuple[int, int]:
        """Names the round's generators."""
        return (self.job.recipe.seed, self.number)

    @property
    def last(self) -> bool:
        """Whether no round follows."""
        return self.number == self.job.recipe.rounds


def note_time(here: RunDir, stage: str, seconds: float, amount: float, sampler_peak: int | None = None) -> None:
    """Add to the timings of a round, or of the run; an interrupted stage that goes on later has several lines.

    Memory is in bytes: the most that this process held so far, and that the stage's own sampler did, if it has one.
    """
    memory = {"peak_bytes": peak_memory(), "sampler_peak_bytes": sampler_peak}
    with (here / "timings.jsonl").open("a", encoding="utf-8") as file:
        row = {"stage": stage, "seconds": round(seconds, 3), "amount": amount, **memory}
        file.write(json.dumps(row, allow_nan=False) + "\n")
