"""How fast this machine decodes a model: slots, KV mode, threads and quantization types, measured."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.hardware import cores
from genius_lite.recipe import QuantType
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from genius_lite.weights import gguf_file
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.merge import merge
from genius_lite.weights.quantize import quantize

_SLOTS = (8, 16, 32, 64)
_PROMPT, _GENERATED = 64, 24  # tokens; short, and the ranking holds
_BRANCHES = 8  # of one prompt, as in a search with two beams and four candidates


@dataclass(frozen=True)
class Speed:
    """Decoding speed of one setting. `sampling` is the share of the time spent drawing tokens."""

    settings: EngineSettings
    tokens_per_s: float
    sampling: float


def sweep(model: Path) -> Iterator[Speed]:
    """Measure settings one after the other, each from the best so far: slots, then KV mode, then threads.

    Nothing else should run meanwhile. Each measurement is a process of its own and takes some seconds.
    """
    best: Speed | None = None

    def tried(options: Iterable[EngineSettings]) -> Iterator[Speed]:
        nonlocal best
        for settings in options:
            speed = decode_speed(model, settings)
            best = speed if best is None or speed.tokens_per_s > best.tokens_per_s else best
            yield speed

    base = EngineSettings(slots=1, context=256, threads=cores())
    yield from tried(msgspec.structs.replace(base, slots=slots) for slots in _SLOTS)
    assert best
    yield from tried([msgspec.structs.replace(best.settings, kv_unified=True)])
    if cores() > 1:
        yield from tried([msgspec.structs.replace(best.settings, threads=max(1, cores() // 2))])


def sweep_types(model: Path, kinds: list[QuantType], settings: EngineSettings) -> Iterator[tuple[QuantType, Speed]]:
    """Measure the model at other quantization types, made from it in a temporary folder."""
    source = gguf_file.read(model)
    with tempfile.TemporaryDirectory() as folder:
        merged, target = Path(folder) / "merged.gguf", Path(folder) / "quantized.gguf"
        merge(source, TensorMap({}, []), None, merged, lambda n: None)
        for kind in kinds:
            if kind in ("F16", "BF16"):
                yield kind, decode_speed(merged, settings)
                continue
            quantize(merged, kind, source, target)
            yield kind, decode_speed(target, settings)
            target.unlink()


def decode_speed(model: Path, settings: EngineSettings) -> Speed:
    """Tokens per second with every slot decoding, prefill not counted."""
    return asyncio.run(_decode_speed(model, settings))


async def _decode_speed(model: Path, settings: EngineSettings) -> Speed:
    with tempfile.TemporaryDirectory() as folder:
        async with open_sampler(model, settings, Sampling(0.6), Path(folder) / "log") as sampler:
            warm = []
            for number, first in enumerate(range(0, settings.slots, _BRANCHES)):
                # Which tokens does not matter for speed; ids this low exist in every vocabulary.
                root = Node(None, [(number * 31 + i * 7) % 200 + 20 for i in range(_PROMPT)], ("bench", number))
                branches = min(_BRANCHES, settings.slots - first)
                warm += sampler.extend(root, branches, until="limit", limit=1)
            nodes = await asyncio.gather(*warm)
            before = await sampler.settled()
            start = time.perf_counter()
            futures = [f for n in nodes for f in sampler.extend(n, 1, until="limit", limit=_GENERATED)]
            await asyncio.gather(*futures)
            seconds = time.perf_counter() - start
            after = await sampler.settled()
    sampling = (after.sampling_s - before.sampling_s) / seconds
    return Speed(settings, settings.slots * _GENERATED / seconds, sampling)


HEADING = "".join(f"{name:>10}" for name in ("type", "slots", "KV", "threads", "tokens/s", "sampling"))


def row(kind: str, speed: Speed) -> str:
    """A measurement as a line below `HEADING`."""
    s = speed.settings
    kv = "unified" if s.kv_unified else "split"
    cells = (kind, s.slots, kv, s.threads, f"{speed.tokens_per_s:.0f}", f"{speed.sampling:.0%}")
    return "".join(f"{cell!s:>10}" for cell in cells)


def recipe_lines(best: Speed, kind: QuantType | None) -> str:
    """The settings as a recipe writes them."""
    s = best.settings
    lines = ["sampler:", f"  slots: {s.slots}", f"  threads: {s.threads}", f"  kv_unified: {str(s.kv_unified).lower()}"]
    return "\n".join(lines + (["quantize:", f"  type: {kind}"] if kind else []))
