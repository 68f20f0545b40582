"""Rates and lengths for a plan: of the run's earlier rounds, remembered, measured now, or reckoned, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from genius_lite.job import Job
from genius_lite.measurements import recall, remember
from genius_lite.planning.earlier import probe_of
from genius_lite.planning.learner import Training
from genius_lite.planning.machine import Machine
from genius_lite.planning.measure import measure_file, measure_type
from genius_lite.planning.measure_learner import measure_learner
from genius_lite.planning.probe import Probe, assumed, described
from genius_lite.planning.rates import (
    Convert,
    Decode,
    How,
    Learn,
    reckoned_convert,
    reckoned_decode,
    reckoned_learn,
)
from genius_lite.planning.shape import Shape
from genius_lite.prompts import StepDelimiter, Vocabulary
from genius_lite.recipe import TargetType
from genius_lite.report.progress import Progressor
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.merge import merged_bytes
from genius_lite.weights.quantize import quantized_bytes

_LARGEST_MADE = 3_000_000_000  # bytes in 16 bits; of larger models no other type is made to measure it
_ROUNDED = 128  # tokens; packs of nearly the same size share a measurement

T = TypeVar("T", bound=msgspec.Struct)


class _Base(msgspec.Struct, frozen=True):
    """A measurement of the base model's file."""

    decode: Decode
    probe: Probe


class _Type(msgspec.Struct, frozen=True):
    """A measurement of the file that is made of it, where that is another one, and of the making."""

    decode: Decode | None
    convert: Convert


@dataclass(frozen=True)
class Source:
    """What rates are asked for, and whether a measurement may be made."""

    job: Job
    shape: Shape
    engine: EngineSettings
    machine: Machine
    measure: bool
    progress: Progressor

    def ask(self, what: str, key: object, kind: type[T], measure: Callable[[], T]) -> tuple[T | None, How]:
        """Remembered, or measured and then remembered, or None."""
        if (found := recall(what, key, kind)) is not None:
            return found, "remembered"
        if not self.measure:
            return None, "estimated"
        with self.progress.stage(f"measure: {what}", 1, "measurement") as advance:
            found = measure()
            advance(1)
        remember(what, key, found)
        return found, "measured"


def sampler_rates(source: Source) -> tuple[dict[str, Decode], Convert, Probe, dict[str, How]]:
    """Of the base model's file, of those that rounds make, and how long responses are."""
    job, engine, shape = source.job, source.engine, source.shape
    cfg, kind = job.recipe.foresight, job.recipe.quantize.type
    model = (job.source.sha256, engine)
    base, how_base = source.ask("decoding", (model, _asked(job)), _Base, lambda: _measured_base(source))
    made: _Type | None = None
    how_made: How = "estimated"
    if merged_bytes(job.source) <= _LARGEST_MADE:
        made, how_made = source.ask("merging", (model, kind), _Type, lambda: _measured_type(source, kind))
    if base is None:
        base = _Base(reckoned_decode(shape, shape.tensor_bytes, source.machine.cores), assumed(cfg))
    decode = {"base": base.decode, kind: made.decode if made and made.decode else _like(base.decode, source)}
    probe, how_long = base.probe, how_base
    with Vocabulary.open(job.source.path) as vocabulary:
        if earlier := probe_of(Path(job.recipe.out), StepDelimiter(vocabulary.pieces), cfg.candidates):
            probe, how_long = earlier, "earlier round"
    how: dict[str, How] = {"decoding": how_base, "merging": how_made, "lengths": how_long}
    return decode, made.convert if made else reckoned_convert(source.machine.cores), probe, how


def learner_rates(source: Source, training: Training) -> tuple[Learn, How]:
    """Of the learner, at packs of about this size."""
    import torch

    cfg, shape, device = source.job.recipe.learner, source.shape, source.machine.device
    tokens = -(-training.tokens // _ROUNDED) * _ROUNDED
    sizes = (shape.layers, shape.width, shape.inner, shape.vocabulary, shape.tied)
    key = (
        sizes,
        cfg.rank,
        training.precision,
        training.in_bf16,
        training.checkpointing,
        tokens,
        device,
        torch.__version__,
    )
    found, how = source.ask(
        "learner", key, Learn, lambda: measure_learner(source.job.source, shape, cfg, training, device)
    )
    return found or reckoned_learn(
        shape, training.precision, source.machine.cores, checkpointing=training.checkpointing
    ), how


def cut_off(job: Job) -> str | None:
    """A warning that too many responses are cut off, by what a plan on this machine has seen of them."""
    seen = recall("lengths", (job.source.sha256, _asked(job)), Probe)
    return seen.cut_off(job.recipe.foresight.max_tokens) if seen else None


def _asked(job: Job) -> tuple[object, ...]:
    """What the lengths of responses depend on."""
    cfg = job.recipe.foresight
    return (cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p, cfg.max_tokens, [q.id for q in job.queries[:4]])


def _measured_base(source: Source) -> _Base:
    job = source.job
    seen = measure_file(job.source.path, source.engine, job.queries, job.recipe.foresight, probe=True)
    with Vocabulary.open(job.source.path) as vocabulary:
        probe = described(seen.responses, StepDelimiter(vocabulary.pieces), "probe")
    remember("lengths", (job.source.sha256, _asked(job)), probe)
    return _Base(seen.decode, probe)


def _measured_type(source: Source, kind: TargetType) -> _Type:
    job = source.job
    return _Type(*measure_type(job.source, kind, source.engine, job.queries, job.recipe.foresight))


def _like(base: Decode, source: Source) -> Decode:
    """A file that was not measured: as the base's, but for the bytes that each decode reads."""
    size, own = quantized_bytes(source.job.source, source.job.recipe.quantize.type), source.shape.tensor_bytes
    return msgspec.structs.replace(base, tick=base.tick * size / own, start=base.start * max(1.0, size / own))
