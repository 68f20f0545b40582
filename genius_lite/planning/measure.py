"""Short measurements of llama.cpp on this machine: how fast a file decodes and is made, and how long responses are."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genius_lite.hardware import cores
from genius_lite.planning.rates import IMPORT_BY_MERGE, Convert, Decode
from genius_lite.recipe import Foresight, TargetType
from genius_lite.records import Query
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling, Stats
from genius_lite.sampler.tree import Node
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.grid import grid, has_grid
from genius_lite.weights.merge import requantize
from genius_lite.weights.quantize import adaptable, quantize_rows, types_of
from genius_lite.weights.rounding import round_keeping

_GENERATED = 12  # tokens that each branch gets in a measurement
_REPEATS = 2  # of each; the shorter time counts, since what disturbs only adds to it
_FEW = 8  # the share of the slots that is busy when the fixed part of a decode is measured: one in so many
_PROBED = 4  # queries, and responses to each, that tell how long responses are
_PROBE_SECONDS = 60.0  # the probe takes fewer responses where it would take longer
_PROMPTS = 4
_SCORED = 48  # tokens of each response that is scored


@dataclass(frozen=True)
class Seen:
    """What one session with a file showed: its rates, and the probe's responses as token ids, a list for each query."""

    decode: Decode
    responses: list[list[list[int]]]


def measure_file(
    model: Path, settings: EngineSettings, queries: Sequence[Query], cfg: Foresight, *, probe: bool = False
) -> Seen:
    """Decode, prefill and score a little with a GGUF at a run's own settings.

    Args:
        queries: prompts come from the first few.
        probe: also let the model answer some of them, as the recipe samples.

    Raises:
        UserError: llama.cpp cannot load it with these settings.
    """
    return asyncio.run(_measure_file(model, settings, queries[:_PROMPTS], cfg, probe))


async def _measure_file(
    model: Path, settings: EngineSettings, queries: Sequence[Query], cfg: Foresight, probe: bool
) -> Seen:
    sampling = Sampling.of(cfg)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        async with open_sampler(model, settings, sampling, Path(folder) / "log") as sampler:
            await sampler.drain()
            start = time.perf_counter() - began
            roots = [Node(None, q.tokens, ("plan", q.id)) for q in queries]
            await sampler.extend(Node(None, queries[0].tokens[-2:], ("warm",)), 1, until="limit", limit=2)[0]
            first = await _spend(sampler, _first_tokens(sampler, roots, settings.slots), await sampler.drain())
            nodes = first.nodes
            few = max(1, settings.slots // _FEW)
            all_busy = await _seconds_of_a_tick(sampler, nodes)
            some_busy = all_busy if few == settings.slots else await _seconds_of_a_tick(sampler, nodes[:few])
            sampled = max(0.0, all_busy - some_busy) / max(1, settings.slots - few)
            scored = await _seconds_of_a_score(sampler, queries, settings.context)
            decode = Decode(
                start=start,
                tick=max(0.0, some_busy - few * sampled),
                sampled=sampled,
                prefilled=first.busy / max(1, first.prefilled),
                scored=scored,
            )
            return Seen(decode, await _responses(sampler, roots, cfg, decode) if probe else [])


@dataclass(frozen=True)
class _Spent:
    nodes: list[Node]
    busy: float
    ticks: int
    prefilled: int


async def _spend(sampler: LocalSampler, futures: list[asyncio.Future[Node]], before: Stats) -> _Spent:
    """Wait for these branches; what the worker did for them, if nothing else was asked meanwhile."""
    nodes = list(await asyncio.gather(*futures))
    after = await sampler.drain()
    return _Spent(
        nodes,
        after.busy_s - before.busy_s,
        after.decode_steps - before.decode_steps,
        after.prefilled - before.prefilled,
    )


def _first_tokens(sampler: LocalSampler, roots: list[Node], slots: int) -> list[asyncio.Future[Node]]:
    shares = [len(range(i, slots, len(roots))) for i in range(len(roots))]
    return [
        future
        for root, n in zip(roots, shares, strict=True)
        if n
        for future in sampler.extend(root, n, until="limit", limit=1)
    ]


async def _seconds_of_a_tick(sampler: LocalSampler, nodes: list[Node]) -> float:
    best = float("inf")
    for _ in range(_REPEATS):
        before = await sampler.drain()
        futures = [sampler.extend(node, 1, until="limit", limit=_GENERATED)[0] for node in nodes]
        spent = await _spend(sampler, futures, before)
        best = min(best, spent.busy / spent.ticks)
    return best


async def _seconds_of_a_score(sampler: LocalSampler, queries: Sequence[Query], context: int) -> float:
    """Of a token of a response; the prompts, which are in the cache, stand for responses to themselves."""
    asked = [(q.tokens, q.tokens[: min(_SCORED, context - len(q.tokens))]) for q in queries]
    best = float("inf")
    for _ in range(_REPEATS):
        before = await sampler.drain()
        await asyncio.gather(*(sampler.score(prompt, response) for prompt, response in asked))
        after = await sampler.drain()
        best = min(best, (after.busy_s - before.busy_s) / sum(len(response) for _, response in asked))
    return best


async def _responses(sampler: LocalSampler, roots: list[Node], cfg: Foresight, decode: Decode) -> list[list[list[int]]]:
    """Complete responses to the first few queries, as many as there is time for."""
    for queries, each in ((_PROBED, _PROBED), (_PROBED, _PROBED // 2), (_PROBED // 2, _PROBED // 2), (2, 1)):
        if cfg.max_tokens * (decode.tick + queries * each * decode.sampled) <= _PROBE_SECONDS:
            break
    asked = [sampler.extend(root, each, until="end", limit=cfg.max_tokens) for root in roots[:queries]]
    return [[node.tokens for node in await asyncio.gather(*futures)] for futures in asked]


def measure_type(
    source: GGUF, kind: TargetType, settings: EngineSettings, queries: Sequence[Query], cfg: Foresight
) -> tuple[Decode | None, Convert]:
    """Make the base model's file of this type in a temporary folder, if that is another one, and measure it.

    Of `Convert` importing is not measured; it is reckoned from the rounding.
    """
    merging = _seconds_of_rounding(source, kind)
    if kind == "source":
        return None, Convert(IMPORT_BY_MERGE * merging, merging, 0.0)
    with tempfile.TemporaryDirectory(prefix="genius-lite-") as folder:
        target = Path(folder) / "quantized.gguf"
        began = time.perf_counter()
        requantize(source, kind, target)
        quantizing = (time.perf_counter() - began) / source.parameters
        convert = Convert(IMPORT_BY_MERGE * merging, merging, quantizing)
        return measure_file(target, settings, queries, cfg).decode, convert


def _seconds_of_rounding(source: GGUF, kind: TargetType) -> float:
    """For a weight that an update is added to, on all cores: some rows of a middle matrix stand for all."""
    types = adaptable(types_of(source, kind), source, {t.name for t in source.tensors})
    layers = [t for t in source.tensors if len(t.shape) == 2 and t.name.startswith("blk.")]
    matrices = [t for t in layers if has_grid(types[t.name])]
    if not matrices:
        return 0.0
    tensor = matrices[len(matrices) // 2]
    weights = source.dequantized_rows(tensor, next(tensor.blocks()))
    held = grid(types[tensor.name], quantize_rows(weights, types[tensor.name]), tensor.columns)
    update = (rng := np.random.default_rng(0)).normal(0, 1e-4, weights.shape).astype(np.float32)
    began = time.perf_counter()
    round_keeping(held, weights, update, rng)
    return (time.perf_counter() - began) / weights.size / cores()
