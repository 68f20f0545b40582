"""What `run` refuses, and which change of a recipe would make it fit: estimated again with it, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from genius_lite.errors import UserError
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.reuse import is_imported_alike
from genius_lite.plan.fit import Shortfall, Sizes, shortfalls, sizes, with_settings
from genius_lite.plan.history import DoneStages, known_lengths, look_back, same_run
from genius_lite.plan.lengths import Lengths, shortest
from genius_lite.plan.shape import Machine
from genius_lite.progress import Stage
from genius_lite.rundir.folder import CHECKPOINT
from genius_lite.weights.quantize import quantized_bytes

_FEWEST_SLOTS, _FEWEST_TOKENS, _FEWEST_PACKED = 2, 64, 256
_SURE = 0.8  # of what is estimated: a run may take 15 % less than that


@dataclass(frozen=True)
class Suggestion:
    """Hold settings that replace a recipe's, and what still lacks with them (nothing, or less than without)."""

    settings: Mapping[str, object]
    lacks: list[Shortfall]
    memory: int

    @property
    def lines(self) -> list[str]:
        """Write them as `--set` takes them."""
        shown = {key: str(v).lower() if isinstance(v, bool) else v for key, v in self.settings.items()}
        return [f"{key}={value}" for key, value in shown.items()]


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
        history = replace(history, done=history.done | {(Stage.IMPORT, 0)})
    require_room_on(job, Machine.here(out), known_lengths(job) or shortest(job.recipe.foresight), history)


def require_room_on(job: Job, machine: Machine, lengths: Lengths, history: DoneStages) -> None:
    """Do the same on a machine, and at lengths of responses, that are given."""
    if lacks := shortfalls(job, sizes(job, machine, lengths, slots=1), machine, history, _SURE):
        worst = lacks[0]
        amounts = f"{worst.wanted / 1e9:.1f} GB of {worst.what}, {worst.free / 1e9:.1f} GB are free"
        helps = advice(lacks, suggest(job, machine, lengths, history))
        raise UserError(f"{worst.stage} would take about {amounts}: {helps}; --force runs all the same")


def suggest(job: Job, machine: Machine, lengths: Lengths, history: DoneStages) -> Suggestion | None:
    """Find the first change after which the run fits, else all that help; None if it fits, or if none helps.

    One setting is tried before several; those that cost least in speed and nothing in what is learned come first.
    """
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
    """Halve a setting again and again."""
    while (value := value // 2) >= least:
        yield {key: value}


def advice(lacks: list[Shortfall], found: Suggestion | None) -> str:
    """Say in one sentence what would help."""
    if found and not found.lacks:
        return f"--set {' --set '.join(found.lines)} would make it fit"
    if lacks[0].on_disk:
        return "make room or move `out` to another disk"
    if lacks[0].stage in (Stage.IMPORT, Stage.MERGE):
        return "the model is too large for this machine; take a smaller one, or close other programs"
    some = f"--set {' --set '.join(found.lines)} helps but is not enough: " if found else ""
    return f"{some}take a smaller model, or close other programs"
