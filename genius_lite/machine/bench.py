"""How fast this machine decodes a model: slots, KV mode, threads and where tokens are drawn, measured."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.errors import UserError
from genius_lite.rundir.disk import scratch
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node

SLOTS = (8, 16, 32, 64)
_PROMPT = 64  # tokens; short, and the ranking holds
_GENERATED = 10  # tokens of each branch
_BRANCHES = 8  # of one prompt, as in a search with two beams and four candidates


@dataclass(frozen=True)
class Speed:
    """Decoding speed of one setting. `decode` and `sampling` are shares of the time, `peak` is in bytes."""

    settings: EngineSettings
    tokens_per_s: float
    decode: float
    sampling: float
    peak: int


def sweep(
    model: Path,
    base: EngineSettings,
    slots: Iterable[int],
    kv_modes: Iterable[bool],
    threads: Iterable[int],
    draws: Iterable[str],
) -> Iterator[Speed]:
    """Measure settings one after the other, each from the best so far: slots, KV mode, threads, where to draw.

    Nothing else should run meanwhile. Each measurement is a process of its own and takes some seconds.
    """
    best: Speed | None = None
    tried: set[EngineSettings] = set()
    for key, values in (("slots", slots), ("kv_unified", kv_modes), ("threads", threads), ("draw", draws)):
        settings = best.settings if best else base
        for value in values:
            option = msgspec.structs.replace(settings, **{key: value})
            if option not in tried:
                tried.add(option)
                speed = decode_speed(model, option, _prompts(option), _GENERATED)
                best = speed if best is None or speed.tokens_per_s > best.tokens_per_s else best
                yield speed


def decode_speed(model: Path, settings: EngineSettings, prompts: list[list[int]], generated: int) -> Speed:
    """Tokens per second with every slot decoding `generated` tokens; the prompts, among which the slots are shared
    out, are prefilled before.

    Raises:
        UserError: the model does not survive it.
    """
    try:
        return asyncio.run(_decode_speed(model, settings, prompts, generated))
    except QueryFailedError as e:
        raise UserError(f"{model}: {e}") from None


def file_speed(model: Path, settings: EngineSettings) -> float:
    """Tokens per second of a model at these settings, measured in short."""
    short = msgspec.structs.replace(settings, context=256, parked=0)
    return decode_speed(model, short, _prompts(short), _GENERATED).tokens_per_s


async def _decode_speed(model: Path, settings: EngineSettings, prompts: list[list[int]], generated: int) -> Speed:
    with scratch() as folder:
        async with open_sampler(model, settings, Sampling(0.6), folder / "log") as sampler:
            shares = [len(range(i, settings.slots, len(prompts))) for i in range(len(prompts))]
            roots = [Node(None, prompt, ("speed", number)) for number, prompt in enumerate(prompts)]
            warm = [sampler.extend(root, n, until="limit", limit=1) for root, n in zip(roots, shares, strict=True)]
            nodes = await asyncio.gather(*itertools.chain(*warm))
            before = await sampler.drain()
            start = time.perf_counter()
            futures = [sampler.extend(node, 1, until="limit", limit=generated)[0] for node in nodes]
            await asyncio.gather(*futures)
            seconds = time.perf_counter() - start
            after = await sampler.drain()
    return Speed(
        settings,
        tokens_per_s=settings.slots * generated / seconds,
        decode=(after.decode_s - before.decode_s) / seconds,
        sampling=(after.sampling_s - before.sampling_s) / seconds,
        peak=after.peak,
    )


def _prompts(settings: EngineSettings) -> list[list[int]]:
    """Make as many as a search has. Which tokens does not matter for speed; ids this low exist in every vocabulary."""
    count = -(-settings.slots // _BRANCHES)
    return [[(number * 31 + i * 7) % 200 + 20 for i in range(_PROMPT)] for number in range(count)]
