"""How fast this machine decodes a model: slots, KV mode, threads and quantization types, measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.errors import UserError
from genius_lite.recipe import QuantType
from genius_lite.rundir.disk import scratch
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.interface import run_until_complete
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.process import SamplerError
from genius_lite.sampler.tree import Node
from genius_lite.weights import gguf_file
from genius_lite.weights.merge import requantize
from genius_lite.weights.quantize import quantized_bytes

SLOTS = (8, 16, 32, 64)
_PROMPT, _SHORT = 64, 16  # tokens of a prompt; in brief so few, as a large model takes seconds to read more
_LONG, _BRIEF = 24, 10  # tokens that each branch generates
_ENOUGH, _FEWEST = 4.0, 3  # seconds of them, where they are few, and the fewest: a large model's steps are long
_LOWEST, _IDS = 20, 200  # tokens that every vocabulary has
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
    *,
    brief: bool = False,
) -> Iterator[Speed]:
    """Measure settings one after the other, each from the best so far: slots, KV mode, threads, where to draw.

    Nothing else should run meanwhile. Each measurement is a process of its own and takes some seconds.

    Raises:
        UserError: the model does not survive it; more slots than the first are left out where they do not fit.
    """
    best: Speed | None = None
    tried: set[EngineSettings] = set()
    for key, values in (("slots", slots), ("kv_unified", kv_modes), ("threads", threads), ("draw", draws)):
        settings = best.settings if best else base
        for option in (msgspec.structs.replace(settings, **{key: value}) for value in values):
            if option in tried:
                continue
            tried.add(option)
            prompt, generated = _PROMPT, _LONG
            if brief:
                enough = int(_ENOUGH * best.tokens_per_s / option.slots) if best else _BRIEF
                prompt, generated = _SHORT, max(_FEWEST, min(_BRIEF, enough))
            try:
                speed = decode_speed(model, option, _prompts(option, prompt), generated)
            except (UserError, SamplerError):  # the latter of a worker that was killed for want of memory
                if best is None or key != "slots":
                    raise
                break  # so many do not fit, nor do more
            best = speed if best is None or speed.tokens_per_s > best.tokens_per_s else best
            yield speed


def sweep_types(model: Path, kinds: list[QuantType], settings: EngineSettings) -> Iterator[tuple[QuantType, Speed]]:
    """Measure the model at other quantization types, made from it in a temporary folder.

    Raises:
        UserError: there is no room for the largest of these files; or the model does not survive it.
    """
    source = gguf_file.read(model)
    largest = max((quantized_bytes(source, kind) for kind in kinds), default=0)
    with scratch(needed=largest, what="the model in another type") as folder:
        target = folder / "quantized.gguf"
        for kind in kinds:
            requantize(source, kind, target)
            yield kind, decode_speed(target, settings, _prompts(settings), _LONG)
            target.unlink()


def decode_speed(model: Path, settings: EngineSettings, prompts: list[list[int]], generated: int) -> Speed:
    """Tokens per second with every slot decoding `generated` tokens; the prompts, among which the slots are shared
    out, are prefilled before.

    Raises:
        UserError: the model does not survive it.
    """
    try:
        return run_until_complete(_decode_speed(model, settings, prompts, generated))
    except QueryFailedError as e:
        raise UserError(f"{model}: {e}") from None


def file_speed(model: Path, settings: EngineSettings) -> float:
    """Tokens per second of a model at these settings, measured in short."""
    short = msgspec.structs.replace(settings, context=256, parked=0)
    return decode_speed(model, short, _prompts(short), _BRIEF).tokens_per_s


async def _decode_speed(model: Path, settings: EngineSettings, prompts: list[list[int]], generated: int) -> Speed:
    with scratch() as folder:
        async with open_sampler(model, settings, Sampling(0.6), folder / "log") as sampler:
            firsts, nodes = list[Node](), list[Node]()
            for number, prompt in enumerate(prompts):
                share = len(range(number, settings.slots, len(prompts)))
                # Each goes on from a token of its own: equal paths would be decoded once.
                paths = ([*prompt, _LOWEST + at % _IDS] for at in range(number, number + share))
                own = [Node(None, path, ("speed", number, at)) for at, path in enumerate(paths)]
                firsts += own[:1]
                nodes += own
            for warm in (firsts, nodes):  # the others copy what the first of their prompt has decoded
                await asyncio.gather(*(sampler.extend(node, 1, until="limit", limit=1)[0] for node in warm))
            before = await sampler.drain()
            start = time.perf_counter()
            await asyncio.gather(*(sampler.extend(node, 1, until="limit", limit=generated)[0] for node in nodes))
            seconds = time.perf_counter() - start
            after = await sampler.drain()
    return Speed(
        settings,
        tokens_per_s=settings.slots * generated / seconds,
        decode=(after.decode_s - before.decode_s) / seconds,
        sampling=(after.sampling_s - before.sampling_s) / seconds,
        peak=after.peak,
    )


def _prompts(settings: EngineSettings, length: int = _PROMPT) -> list[list[int]]:
    """Make as many as a search has. Which tokens does not matter for speed; ids this low exist in every vocabulary."""
    count = -(-settings.slots // _BRANCHES)
    return [[(number * 31 + i * 7) % _IDS + _LOWEST for i in range(length)] for number in range(count)]


HEADING = "".join(f"{name:>10}" for name in ("type", "slots", "KV", "threads", "draw", "tokens/s", "sampling", "MB"))


def row(kind: str, speed: Speed) -> str:
    """A measurement as a line below `HEADING`."""
    s = speed.settings
    kv = "unified" if s.kv_unified else "split"
    cells = (kind, s.slots, kv, s.threads, s.draw, f"{speed.tokens_per_s:.0f}", f"{speed.sampling:.0%}")
    return "".join(f"{cell!s:>10}" for cell in (*cells, f"{speed.peak / 1e6:.0f}"))


def recipe_lines(best: Speed, kind: QuantType | None) -> str:
    """The settings as a recipe writes them."""
    s = best.settings
    lines = ["sampler:", f"  slots: {s.slots}", f"  threads: {s.threads}", f"  kv_unified: {str(s.kv_unified).lower()}"]
    lines += [f"  draw: {s.draw}"] if s.draw == "device" else []
    return "\n".join(lines + (["quantize:", f"  type: {kind}"] if kind else []))
