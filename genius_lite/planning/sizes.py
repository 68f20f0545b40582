"""Memory and disk of a recipe on a machine, at given lengths of responses: arithmetic, and nothing measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import Job
from genius_lite.planning import disk, learner
from genius_lite.planning.earlier import Earlier
from genius_lite.planning.machine import Machine
from genius_lite.planning.memory import (
    BASE,
    EVALUATION,
    EXPORT,
    IMPORT,
    QUANTIZING,
    ROLLOUTS,
    TRAINING,
    Peak,
    Use,
    peaks,
)
from genius_lite.planning.probe import Probe
from genius_lite.planning.shape import Shape
from genius_lite.planning.tokens import Round, expected
from genius_lite.progress import SILENT
from genius_lite.recipe import Recipe
from genius_lite.sampler.messages import EngineSettings


@dataclass(frozen=True)
class Sizes:
    """What a run takes, and what that follows from.

    `first` has the peaks of the first round's stages, `later` those of any other's (none if there is no other), `disk`
    the bytes that the run folder holds then.
    """

    first: dict[str, Peak]
    later: dict[str, Peak]
    disk: dict[str, int]
    round: Round
    engine: EngineSettings
    training: learner.Training

    @property
    def fullest(self) -> Peak:
        """The stage that takes the most main memory."""
        return max([*self.first.values(), *self.later.values()], key=lambda peak: peak.total)

    def peak(self, stage: str, number: int) -> Peak:
        """Of a stage of a round."""
        return (self.first if number <= 1 else self.later)[stage]


def sizes(job: Job, machine: Machine, probe: Probe, engine: EngineSettings | None = None, *, slots: int = 32) -> Sizes:
    """Of a recipe made concrete.

    Args:
        engine: the sampler's settings, if they are known.
        slots: what `auto` is taken for where they are not, and nothing is remembered.
    """
    recipe, shape = job.recipe, Shape.of(job.source)
    engine = engine or engine_settings(recipe.sampler, job.source, job.context, SILENT, unmeasured=slots)
    work = expected(
        recipe,
        job.searched,
        probe,
        engine.slots,
        trees=not shape.recurrent,
        cpu=machine.device == "cpu",
    )
    training = learner.settled(recipe.learner, shape, machine, work.learned.largest, work.learned.counted)
    use = Use(recipe, job.source, shape, engine, training, machine, evaluated=bool(job.tasks or job.watched))
    by_stage = disk.written(recipe, job.source, shape, work.rollouts.sampled, weights=job.weights is not None)
    first, later = ({peak.stage: peak for peak in peaks(use, first=of_first)} for of_first in (True, False))
    if recipe.rounds == 1:
        later = {}
    return Sizes(first, later, disk.needed(by_stage, recipe.rounds), work, engine, training)


def stages_of(job: Job) -> list[tuple[str, int]]:
    """Every stage of a run with its round, in order."""
    evaluated, rounds = bool(job.tasks or job.watched), job.recipe.rounds
    each = [ROLLOUTS, TRAINING, QUANTIZING, *([EVALUATION] if evaluated else [])]
    first = [(IMPORT, 0), *([(BASE, 0)] if evaluated else [])]
    return [*first, *((stage, number) for number in range(1, rounds + 1) for stage in each), (EXPORT, rounds)]


@dataclass(frozen=True)
class Lack:
    """A stage for which something does not suffice: bytes that are wanted, and that there are."""

    stage: str
    what: str
    wanted: int
    there: int

    @property
    def on_disk(self) -> bool:
        return self.what.startswith("disk")

    @property
    def short(self) -> float:
        """How many times what there is would be needed."""
        return self.wanted / max(1, self.there)


def lacking(job: Job, found: Sizes, machine: Machine, earlier: Earlier, margin: float = 1.0) -> list[Lack]:
    """What does not suffice for the stages that are still to come, the worst first.

    Args:
        margin: the share of the reckoned memory from which something is said to lack.
    """
    ahead = [(stage, number) for stage, number in stages_of(job) if (stage, number) not in earlier.done]
    lacks = []
    fullest: dict[str, Peak] = {}
    for stage, number in ahead:
        fullest[stage] = max(
            found.peak(stage, number), fullest.get(stage, Peak(stage, {})), key=lambda peak: peak.total
        )
    for stage, peak in fullest.items():
        if margin * peak.total > machine.memory:
            lacks.append(Lack(stage, "memory", peak.total, machine.memory))
        if peak.gpu and margin * peak.gpu_total > (there := _gpu_memory(stage, machine)):
            lacks.append(Lack(stage, "GPU memory", peak.gpu_total, there))
    for stage, size in found.disk.items():
        more = size - earlier.bytes
        if stage in fullest and more > machine.disk:
            lacks.append(Lack(stage, f"disk in {Path(job.recipe.out)}", more, machine.disk))
    return sorted(lacks, key=lambda lack: -lack.short)


def _gpu_memory(stage: str, machine: Machine) -> int:
    return machine.learner_memory if stage == TRAINING else machine.gpu_memory


def with_settings(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with some keys (`learner.precision`) set anew.

    Raises:
        pydantic.ValidationError: the values do not go together.
    """
    data = recipe.model_dump()
    for key, value in changes.items():
        *sections, name = key.split(".")
        at = data
        for section in sections:
            at = at[section]
        at[name] = value
    return Recipe.model_validate(data)
