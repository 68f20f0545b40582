"""Which change of a recipe would make it fit: tried by reckoning again, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from genius_lite.errors import UserError
from genius_lite.job import Job
from genius_lite.planning.earlier import Earlier
from genius_lite.planning.machine import Machine
from genius_lite.planning.memory import IMPORT, QUANTIZING, TRAINING
from genius_lite.planning.probe import Probe
from genius_lite.planning.sizes import Lack, Sizes, lacking, sizes, with_settings
from genius_lite.weights.quantize import quantized_bytes

Settings = Mapping[str, object]
_FEWEST_SLOTS, _FEWEST_TOKENS, _FEWEST_PACKED = 2, 64, 256


@dataclass(frozen=True)
class Remedy:
    """Settings that replace a recipe's, and what is still lacking with them (nothing, or less than without)."""

    settings: Settings
    lacks: list[Lack]
    memory: int

    @property
    def lines(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={_written(value)}" for key, value in self.settings.items()]


def remedy(job: Job, machine: Machine, probe: Probe, earlier: Earlier, *, margin: float = 1.0) -> Remedy | None:
    """The first change after which the run fits, else all that help; None if it fits, or if none helps.

    Each change was reckoned with again. One setting is tried before several; those that cost least in speed and nothing
    in what is learned come first.
    """
    now = sizes(job, machine, probe)
    lacks = lacking(job, now, machine, earlier, margin)
    if not lacks:
        return None
    together: Settings = {}
    best: Remedy | None = None
    for change in _changes(job, now, lacks):
        for settings in (change, {**together, **change}):
            tried = _tried(job, machine, probe, earlier, settings, margin)
            if tried and not tried.lacks:
                return tried
        if tried and _worst(tried.lacks) < _worst(best.lacks if best else lacks):
            together, best = settings, tried
    return best


def _tried(
    job: Job, machine: Machine, probe: Probe, earlier: Earlier, settings: Settings, margin: float
) -> Remedy | None:
    try:
        changed = job.under(with_settings(job.recipe, settings))
    except (ValidationError, UserError):
        return None  # these settings do not go with the recipe's others
    found = sizes(changed, machine, probe)
    return Remedy(settings, lacking(changed, found, machine, earlier, margin), found.fullest.total)


def _worst(lacks: list[Lack]) -> float:
    return max((lack.short for lack in lacks), default=0.0)


def _changes(job: Job, now: Sizes, lacks: list[Lack]) -> Iterator[Settings]:
    """What may help the stages that lack something, mildest first."""
    recipe, stages = job.recipe, {lack.stage for lack in lacks if not lack.on_disk}
    if TRAINING in stages:
        if not now.training.checkpointing:
            yield {"learner.gradient_checkpointing": True}
        yield from ({"learner.max_pack_tokens": n} for n in _halves(recipe.learner.max_pack_tokens, _FEWEST_PACKED))
        if now.training.precision != "nf4":
            yield {"learner.precision": "nf4"}
    if stages - {TRAINING, IMPORT, QUANTIZING}:
        if now.engine.parked:
            yield {"sampler.parked": 0}
        yield from ({"sampler.slots": n} for n in _halves(now.engine.slots, _FEWEST_SLOTS))
        if recipe.sampler.kv_type == "F16":
            yield {"sampler.kv_type": "Q8_0", "sampler.flash_attention": True}
        if any(lack.what == "GPU memory" for lack in lacks):
            yield {"sampler.gpu_layers": 0}
    if any(lack.on_disk for lack in lacks):
        if quantized_bytes(job.source, recipe.quantize.type) > quantized_bytes(job.source, "Q4_K_M"):
            yield {"quantize.type": "Q4_K_M"}
        yield from ({"rounds": n} for n in _halves(recipe.rounds, 1))
    if stages - {IMPORT, QUANTIZING}:
        yield from ({"foresight.max_tokens": n} for n in _halves(recipe.foresight.max_tokens, _FEWEST_TOKENS))


def _halves(value: int, least: int) -> list[int]:
    """Half of a number, and so on."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def advice(lacks: list[Lack], found: Remedy | None) -> str:
    """One sentence about what would help."""
    if found and not found.lacks:
        return f"--set {' --set '.join(found.lines)} would make it fit"
    if lacks[0].on_disk:
        return "make room or move `out` to another disk"
    if lacks[0].stage in (IMPORT, QUANTIZING):
        return "the model is too large for this machine; take a smaller one, or close other programs"
    some = f"--set {' --set '.join(found.lines)} helps but is not enough: " if found else ""
    return f"{some}take a smaller model, or close other programs"


def refusal(lacks: list[Lack], found: Remedy | None) -> str:
    """Why a run would not end well, in one line."""
    worst = lacks[0]
    amounts = f"{worst.wanted / 1e9:.1f} GB of {worst.what}, {worst.there / 1e9:.1f} GB are free"
    return f"{worst.stage} would take about {amounts}: {advice(lacks, found)}"
