"""Does a run fit? Memory and disk of a recipe on a machine, at given lengths of responses: arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import Job
from genius_lite.plan.history import DoneStages
from genius_lite.plan.lengths import Lengths
from genius_lite.plan.memory import BASE, Peak, Training, Use, peaks, resolve_training
from genius_lite.plan.shape import Machine, Shape
from genius_lite.plan.tokens import Work, expected_work
from genius_lite.progress import SILENT, Stage
from genius_lite.recipe import Recipe
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.quantize import quantized_bytes

TYPICAL_SLOTS = 32  # for `auto`, where nothing was measured
_SAMPLED = 14  # bytes of a token in rollouts.jsonl, with its log-probability, as text
_SMALL = 5_000_000  # bytes of logs, reports and pairs


@dataclass(frozen=True)
class Sizes:
    """Hold what a run takes, and what that follows from.

    `first` has the peaks of the first round's stages, `later` those of any other's, `disk` the bytes that the run
    folder holds at a stage's fullest, of the last round where a stage is in every one.
    """

    first: dict[str, Peak]
    later: dict[str, Peak]
    disk: dict[str, int]
    work: Work
    engine: EngineSettings
    training: Training

    @property
    def highest(self) -> Peak:
        """Find the stage that takes the most main memory."""
        return max([*self.first.values(), *self.later.values()], key=lambda peak: peak.total)

    def peak(self, stage: str, number: int) -> Peak:
        """Look up a stage of a round."""
        return (self.first if number <= 1 else self.later)[stage]


@dataclass(frozen=True)
class Shortfall:
    """Hold a stage for which something does not suffice: bytes that are wanted, and that are free."""

    stage: str
    what: str
    wanted: int
    free: int

    @property
    def on_disk(self) -> bool:
        """Say whether it is disk that lacks."""
        return self.what.startswith("disk")

    @property
    def ratio(self) -> float:
        """Divide what is wanted by what is free."""
        return self.wanted / max(1, self.free)


def sizes(
    job: Job, machine: Machine, lengths: Lengths, engine: EngineSettings | None = None, *, slots: int = TYPICAL_SLOTS
) -> Sizes:
    """Estimate memory and disk of a prepared recipe.

    Args:
        engine: the sampler's settings, if they are known.
        slots: what `auto` is taken for where they are not, and nothing is remembered.
    """
    recipe, shape = job.recipe, Shape.of(job.source)
    engine = engine or engine_settings(recipe.sampler, job.source, job.context, SILENT, unmeasured=slots)
    trees, on_cpu = not shape.recurrent, machine.device == "cpu"
    work = expected_work(recipe, job.searched(1), lengths, engine.slots, trees=trees, on_cpu=on_cpu)
    training = resolve_training(recipe.learner, shape, machine, work.learned.passes, work.learned.counted)
    use = Use(recipe, job.source, shape, engine, training, machine, evaluated=bool(job.tasks or job.watched))
    first, later = ({peak.stage: peak for peak in peaks(use, first=of_first)} for of_first in (True, False))
    disk = disk_bytes(job, shape, work.rollouts.sampled)
    return Sizes(first, later if recipe.rounds > 1 else {}, disk, work, engine, training)


def disk_bytes(job: Job, shape: Shape, sampled: float) -> dict[str, int]:
    """Estimate what the run folder holds at the fullest moment of each stage that writes models, bytes.

    Args:
        sampled: tokens of a round.
    """
    recipe, rounds = job.recipe, job.recipe.rounds
    sixteen, adapter = 2 * shape.parameters, 4 * shape.adapter_weights(recipe.learner)
    made = quantized_bytes(job.source, recipe.quantize.type)
    base = made if rounds_base(job) else 0
    kept = {
        Stage.ROLLOUTS: int(_SAMPLED * sampled) + _SMALL,
        Stage.TRAIN: adapter,
        # An adapter at run time stands beside the merged file.
        Stage.MERGE: made + (recipe.policy == "adapter") * adapter,
        Stage.EXPORT: made,
    }
    # A state holds the adapter and two moments of each number, and the one before it goes when it is there.
    passing = {Stage.ROLLOUTS: 0, Stage.TRAIN: 2 * 3 * adapter, Stage.MERGE: adapter, Stage.EXPORT: made}
    held = sixteen * (2 if job.weights else 1)
    found: dict[str, int] = {Stage.IMPORT: held + (sixteen if job.weights else shape.tensor_bytes)}
    each = kept[Stage.ROLLOUTS] + kept[Stage.TRAIN] + kept[Stage.MERGE]
    held += (rounds - 1) * each + (rounds > 1) * base
    for stage, size in kept.items():
        held += size + (base if stage == Stage.MERGE and rounds == 1 else 0)
        found[stage] = held + passing[stage]
    return found


def rounds_base(job: Job) -> bool:
    """Say whether rounds are compared with another file than the user's own: the base model in their types."""
    return job.recipe.quantize.type != "source" or job.weights is not None


def stages_of(job: Job) -> list[tuple[str, int]]:
    """List every stage of a run with its round, in order; round 0 comes before the first."""
    evaluated, rounds = bool(job.tasks or job.watched), job.recipe.rounds
    each = [Stage.ROLLOUTS, Stage.TRAIN, Stage.MERGE, *([Stage.EVALUATE] if evaluated else [])]
    first = [(Stage.IMPORT, 0), *([(BASE, 0)] if evaluated else [])]
    return [*first, *((stage, number) for number in range(1, rounds + 1) for stage in each), (Stage.EXPORT, rounds)]


def shortfalls(job: Job, found: Sizes, machine: Machine, history: DoneStages, margin: float = 1.0) -> list[Shortfall]:
    """Find what does not suffice for the stages that are still to come, the worst first.

    Args:
        margin: the share of the estimated memory from which something is said to lack.
    """
    fullest: dict[str, Peak] = {}
    for stage, number in stages_of(job):
        if (stage, number) not in history.done:
            known = fullest.get(stage, Peak(stage, {}))
            fullest[stage] = max(found.peak(stage, number), known, key=lambda peak: peak.total)
    lacks = []
    for stage, peak in fullest.items():
        on_gpu = machine.learner_memory if stage == Stage.TRAIN else machine.gpu_memory
        if margin * peak.total > machine.memory:
            lacks.append(Shortfall(stage, "memory", peak.total, machine.memory))
        if peak.gpu and margin * peak.gpu_total > on_gpu:
            lacks.append(Shortfall(stage, "GPU memory", peak.gpu_total, on_gpu))
        more = found.disk.get(stage, 0) - history.bytes
        if more > machine.disk:
            lacks.append(Shortfall(stage, f"disk in {Path(job.recipe.out)}", more, machine.disk))
    return sorted(lacks, key=lambda lack: -lack.ratio)


def with_settings(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """Set some keys (`learner.precision`) of a recipe anew.

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
