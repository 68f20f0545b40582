"""Does a run fit? Memory and disk of a recipe on a machine, at given lengths of responses: arithmetic alone.

What `run` refuses, and which change of a recipe would make it fit: estimated again with it, the mildest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from genius_lite.errors import UserError
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.reuse import is_imported_alike
from genius_lite.plan.history import DoneStages, known_lengths, look_back, same_run
from genius_lite.plan.lengths import Lengths, shortest
from genius_lite.plan.memory import BASE, Peak, Training, Use, fullest, peaks, resolve_training
from genius_lite.plan.shape import Machine, Shape
from genius_lite.plan.tokens import Work, expected_work
from genius_lite.progress import SILENT, Stage
from genius_lite.recipe import Recipe
from genius_lite.rundir.folder import CHECKPOINT
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.quantize import quantized_bytes

TYPICAL_SLOTS = 32  # for `auto`, where nothing was measured
_SAMPLED = 14  # bytes of a token in rollouts.jsonl, with its log-probability, as text
_SMALL = 5_000_000  # bytes of logs, reports and pairs
_FEWEST_SLOTS, _FEWEST_TOKENS, _FEWEST_PACKED = 2, 64, 256
_SURE = 0.8  # of what is estimated: a run may take 15 % less than that


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
        return fullest([*self.first.values(), *self.later.values()])

    def peak(self, stage: str, number: int) -> Peak:
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
        return self.what.startswith("disk")

    @property
    def ratio(self) -> float:
        return self.wanted / max(1, self.free)


def sizes(
    job: Job, machine: Machine, lengths: Lengths, engine: EngineSettings | None = None, *, slots: int = TYPICAL_SLOTS
) -> Sizes:
    """Estimate memory and disk of a prepared recipe.

    Args:
        engine: the sampler's settings; where they are not known, and nothing is remembered, `auto` is so many `slots`.
    """
    recipe, shape = job.recipe, Shape.of(job.source)
    engine = engine or engine_settings(recipe.sampler, job.source, job.context, SILENT, unmeasured=slots)
    trees, on_cpu = not shape.recurrent, machine.device == "cpu"
    work = expected_work(recipe, job.searched(1), lengths, engine.slots, trees=trees, on_cpu=on_cpu)
    training = resolve_training(recipe.learner, shape, machine, work.passes, work.counted)
    use = Use(recipe, job.source, shape, engine, training, machine, evaluated=bool(job.tasks or job.watched))
    first, later = ({peak.stage: peak for peak in peaks(use, first=of_first)} for of_first in (True, False))
    disk = disk_bytes(job, shape, work.rollouts.sampled)
    return Sizes(first, later if recipe.rounds > 1 else {}, disk, work, engine, training)


def disk_bytes(job: Job, shape: Shape, sampled: float) -> dict[str, int]:
    """Estimate the bytes of the run folder at the fullest moment of each stage; a round samples so many tokens."""
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
    held += (rounds - 1) * (sum(kept.values()) - kept[Stage.EXPORT]) + (rounds > 1) * base
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
    ahead, lacks = [stage for stage in stages_of(job) if stage not in history.done], list[Shortfall]()
    for stage in dict.fromkeys(stage for stage, _ in ahead):
        peak = fullest(found.peak(*each) for each in ahead if each[0] == stage)
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


@dataclass(frozen=True)
class Suggestion:
    """Hold settings that replace a recipe's, and what still lacks with them (nothing, or less than without)."""

    settings: Mapping[str, object]
    lacks: list[Shortfall]
    memory: int

    @property
    def options(self) -> str:
        """Write them as the command line takes them."""
        shown = {key: str(v).lower() if isinstance(v, bool) else v for key, v in self.settings.items()}
        return " ".join(f"--set {key}={value}" for key, value in shown.items())


def require_room(job: Job, reuse: Path | None = None) -> None:
    """Refuse a run for which memory or disk cannot suffice. Nothing is measured, and no weights are read.

    What a run folder has finished already needs no memory any more, and its files no more disk. Responses are taken to
    be short, unless a rehearsal or the folder's first round says how long they are.

    Args:
        reuse: another run's folder, from which what is imported may be taken.

    Raises:
        UserError: a stage, how much it takes, and what would help.
    """
    out = Path(job.recipe.out)
    if not same_run(out, job.identity):
        return  # it is refused for that when it is opened
    history = look_back(out, job.recipe.rounds)
    if reuse and (reuse / CHECKPOINT).exists() and is_imported_alike(job.identity, reuse):
        history = replace(history, done=history.done | {(Stage.IMPORT, 0): None})
    require_room_on(job, Machine.here(out), known_lengths(job) or shortest(job.recipe.foresight), history)


def require_room_on(job: Job, machine: Machine, lengths: Lengths, history: DoneStages) -> None:
    """Refuse it, as `require_room` does, on this machine and at these lengths of responses."""
    if lacks := shortfalls(job, sizes(job, machine, lengths, slots=1), machine, history, _SURE):
        worst = lacks[0]
        amounts = f"{worst.wanted / 1e9:.1f} GB of {worst.what}, {worst.free / 1e9:.1f} GB are free"
        helps = advice(lacks, suggest(job, machine, lengths, history))
        raise UserError(f"{worst.stage} would take about {amounts}: {helps}; --force runs all the same")


def suggest(job: Job, machine: Machine, lengths: Lengths, history: DoneStages) -> Suggestion | None:
    """Find the first change after which the run fits, else all that help; None if it fits, or if none helps.

    One setting is tried before several; those that cost least in speed and nothing in what is learned come first. A run
    that has begun a round is not told what would make it another one.
    """
    begun = bool(history.searched) or any(number or stage == BASE for stage, number in history.done)
    now = sizes(job, machine, lengths)
    lacks = shortfalls(job, now, machine, history)
    best, together = None, dict[str, object]()
    for change in _changes(job, now, lacks):
        tried = None
        for settings in (change, {**together, **change}):
            try:
                changed = job.under(with_settings(job.recipe, settings))
            except (ValidationError, UserError):
                tried = None  # these settings do not go with the recipe's others
                continue
            if begun and changed.identity != job.identity:
                continue
            found = sizes(changed, machine, lengths)
            tried = Suggestion(settings, shortfalls(changed, found, machine, history), found.highest.total)
            if not tried.lacks:
                return tried
        if tried and tried.lacks[0].ratio < (best.lacks if best else lacks)[0].ratio:
            together, best = dict(tried.settings), tried
    return best


def _changes(job: Job, now: Sizes, lacks: list[Shortfall]) -> Iterator[dict[str, object]]:
    """Go through what may help the stages that lack something, mildest first."""
    recipe, stages = job.recipe, {lack.stage for lack in lacks if not lack.on_disk}
    if Stage.TRAIN in stages:
        if recipe.learner.gradient_checkpointing is not True:
            yield {"learner.gradient_checkpointing": True}
        yield from _halves("learner.max_pack_tokens", recipe.learner.max_pack_tokens, _FEWEST_PACKED)
        if now.training.precision != "nf4":
            yield {"learner.precision": "nf4"}
    if stages - {Stage.TRAIN, Stage.IMPORT, Stage.MERGE}:
        if now.engine.parked:
            yield {"sampler.parked": 0}
        yield from _halves("sampler.slots", now.engine.slots, _FEWEST_SLOTS)
        if recipe.sampler.kv_type == "F16":
            yield {"sampler.kv_type": "Q8_0", "sampler.flash_attention": True}
        if any(lack.what == "GPU memory" for lack in lacks):
            yield {"sampler.gpu_layers": 0}
    if any(lack.on_disk for lack in lacks):
        if quantized_bytes(job.source, recipe.quantize.type) > quantized_bytes(job.source, "Q4_K_M"):
            yield {"quantize.type": "Q4_K_M"}
        yield from _halves("rounds", recipe.rounds, 1)
    if stages - {Stage.IMPORT, Stage.MERGE}:
        for key in ("thought_tokens", "max_tokens"):
            yield from _halves(f"foresight.{key}", getattr(recipe.foresight, key), _FEWEST_TOKENS)


def _halves(key: str, value: int, least: int) -> Iterator[dict[str, object]]:
    while (value := value // 2) >= least:
        yield {key: value}


def advice(lacks: list[Shortfall], found: Suggestion | None) -> str:
    """Say in one sentence what would help."""
    if found and not found.lacks:
        return f"{found.options} would make it fit"
    if lacks[0].on_disk:
        return "make room or move `out` to another disk"
    if lacks[0].stage in (Stage.IMPORT, Stage.MERGE):
        return "the model is too large for this machine; take a smaller one, or close other programs"
    some = f"{found.options} helps but is not enough: " if found else ""
    return f"{some}take a smaller model, or close other programs"
