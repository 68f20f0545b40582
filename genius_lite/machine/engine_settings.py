"""From the recipe's sampler section to llama.cpp's settings: what `auto` means for these queries and this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from genius_lite.errors import UserError
from genius_lite.hardware.gpus import gpus
from genius_lite.hardware.system import cores, free_memory
from genius_lite.machine.bench import SLOTS, sweep
from genius_lite.measurements import recall, remember
from genius_lite.progress import Progress
from genius_lite.recipe import Auto, Sampler
from genius_lite.recipe.sampler import MOST_SEQUENCES
from genius_lite.records import Query
from genius_lite.sampler.llama import logits_rows
from genius_lite.sampler.messages import EngineSettings
from genius_lite.text import brief
from genius_lite.weights.footprint import kv_bytes, layer_bytes
from genius_lite.weights.gguf_file import GGUF

CONTEXT_STEP = 256  # llama.cpp pads the context of a sequence to this
_GPU_SHARE = 0.9  # of the free memory; the display and other programs want some
_GPU_SCRATCH = 256e6  # bytes of intermediate results beside the logits
_DRAWN_FROM = 6  # tensors as large as the logits, while the device draws from them
_MEMORY_SHARE = 0.8  # of the free memory, for a file that is sampled from by choice
_FEW_CORES = 2  # of which half are not tried: too few to be worth a fifth of the measurement
_KV_SHARE = 0.5  # of the free memory that measured slots may take for their KV cache


class _Fastest(msgspec.Struct, frozen=True):
    """Of the settings that were measured."""

    slots: int
    kv_unified: bool
    threads: int
    draw: Literal["host", "device"]
    tokens_per_s: int


def context_for(wanted: int | Auto, source: GGUF, uses: Iterable[tuple[str, int, list[Query]]]) -> int:
    """Tokens that a branch needs at most, padded.

    Args:
        wanted: the recipe's.
        uses: the name of a limit, that limit on a response's tokens, and the queries that it is for.

    Raises:
        UserError: a query leaves no room for a response.
    """
    limit = source.own("context_length") if wanted == "auto" else wanted
    needed = 0
    for name, response, queries in uses:
        for query in queries:
            if len(query.tokens) + response > limit:
                raise UserError(
                    f"query `{brief(query.prompt, 40)}` takes {len(query.tokens)} tokens and {name} is {response}: "
                    f"more than the context of {limit}; shorten one of them, or leave such queries out "
                    "(queries.max_tokens)"
                )
            needed = max(needed, len(query.tokens) + response)
    padded = -(-needed // CONTEXT_STEP) * CONTEXT_STEP
    return padded if wanted == "auto" else wanted


def engine_settings(
    cfg: Sampler, source: GGUF, context: int, progress: Progress, unmeasured: int | None = None
) -> EngineSettings:
    """The settings to sample `source`, and models made from it, with; measures first if the recipe asks for it.

    Args:
        unmeasured: do not measure; take so many slots for `auto` where no measurement is remembered.
    """
    draws: list[Literal["host", "device"]] = ["host"] if cfg.draw == "auto" else [cfg.draw]
    if cfg.draw == "auto" and cfg.gpu_layers != 0 and gpus():
        draws = ["host", "device"]
    settings = EngineSettings(
        slots=SLOTS[0] if cfg.slots == "auto" else cfg.slots,
        context=context,
        threads=cores() if cfg.threads == "auto" else cfg.threads,
        gpu_layers=0,
        kv_unified=False if cfg.kv_unified == "auto" else cfg.kv_unified,
        kv_type=cfg.kv_type,
        flash_attention=None if cfg.flash_attention == "auto" else cfg.flash_attention,
        prefill_chunk=cfg.prefill_chunk,
        watchdog=cfg.watchdog,
        draw=draws[0],
    )
    if cfg.measured or len(draws) > 1:
        settings = _measured(cfg, source, settings, draws, progress, unmeasured)
    settings = msgspec.structs.replace(settings, parked=settings.slots if cfg.parked == "auto" else cfg.parked)
    return msgspec.structs.replace(settings, gpu_layers=_gpu_layers(cfg, source, settings))


def settings_to_measure(source: GGUF) -> tuple[EngineSettings, list[int]]:
    """The settings to begin a measurement of nothing but speed with, and the numbers of slots worth trying."""
    settings = EngineSettings(slots=SLOTS[0], context=CONTEXT_STEP, threads=cores())
    layers = _gpu_layers(Sampler(), source, settings)
    return msgspec.structs.replace(settings, gpu_layers=layers), _slots_that_fit(source, settings)


def fits(source: GGUF, size: int, engine: EngineSettings) -> bool:
    """Say whether another file of the model, with `size` bytes of tensors, can be sampled from with these settings.

    Where layers are on a GPU, all of them have to fit there: what moves back to the processor is slower.
    """
    layers, _, _ = layer_bytes(source)
    tokens = engine.context * (engine.slots + engine.parked)
    devices = gpus() if engine.gpu_layers else []
    if devices and 0 < engine.gpu_layers < layers:
        return False
    free = sum(_GPU_SHARE * gpu.free - _GPU_SCRATCH for gpu in devices) if devices else _MEMORY_SHARE * free_memory()
    return size + tokens * layers * kv_bytes(source, engine.kv_type) <= free


def _measured(
    cfg: Sampler,
    source: GGUF,
    settings: EngineSettings,
    draws: list[Literal["host", "device"]],
    progress: Progress,
    unmeasured: int | None,
) -> EngineSettings:
    """The fastest of the settings that the recipe leaves open, measured once and then remembered."""
    slots = _slots_that_fit(source, settings, cfg.parked) if cfg.slots == "auto" else [settings.slots]
    kv_modes = [False, True] if cfg.kv_unified == "auto" else [settings.kv_unified]
    own = cores()  # more than one is told from half of them, which are as fast where two share a core's units
    threads = [own, own // 2] if own > _FEW_CORES else [own]
    threads = threads if cfg.threads == "auto" else [settings.threads]
    layers = _gpu_layers(cfg, source, msgspec.structs.replace(settings, draw=draws[-1]))
    base = msgspec.structs.replace(settings, gpu_layers=layers, context=CONTEXT_STEP)
    key = (source.sha256, msgspec.structs.replace(base, watchdog=0.0), slots, kv_modes, threads, draws)
    found = recall("fastest", key, _Fastest)
    if not found:
        if unmeasured is not None:
            return msgspec.structs.replace(settings, slots=min(slots, key=lambda fitting: abs(fitting - unmeasured)))
        speeds = []
        count = len(slots) + len(kv_modes) + len(threads) + len(draws) - 3  # one option of each list is the best so far
        with progress.stage("measure this machine", count, "settings") as advance:
            for speed in sweep(source.path, base, slots, kv_modes, threads, draws, brief=True):
                speeds.append(speed)
                advance(1)
        best = max(speeds, key=lambda speed: speed.tokens_per_s)
        chosen = best.settings
        found = _Fastest(chosen.slots, chosen.kv_unified, chosen.threads, chosen.draw, round(best.tokens_per_s))
        remember("fastest", key, found)
    if unmeasured is None:
        progress.say("sampler: " + ", ".join(f"{key} {value}" for key, value in msgspec.structs.asdict(found).items()))
    return msgspec.structs.replace(
        settings, slots=found.slots, kv_unified=found.kv_unified, threads=found.threads, draw=found.draw
    )


def _slots_that_fit(source: GGUF, settings: EngineSettings, parked: int | Auto = "auto") -> list[int]:
    """The numbers of slots worth trying: their KV cache, as many parked paths included, leaves room for other things.

    Together with the paths that the recipe parks they are no more than llama.cpp holds.
    """
    layers, _, _ = layer_bytes(source)
    each = 2 * settings.context * layers * kv_bytes(source, settings.kv_type)
    devices = gpus()
    free = _KV_SHARE * (max(gpu.free for gpu in devices) if devices else free_memory())
    most = MOST_SEQUENCES - (0 if parked == "auto" else parked)
    return [slots for slots in SLOTS if slots * each <= free and slots <= most] or [1]


def _gpu_layers(cfg: Sampler, source: GGUF, settings: EngineSettings) -> int:
    """The recipe's, or as many as the GPUs hold together with their part of the KV cache; -1 is all of them."""
    if cfg.gpu_layers != "auto":
        return cfg.gpu_layers
    layers, each, outside = layer_bytes(source)
    tokens = settings.context * (settings.slots + settings.parked)
    logits = 4 * logits_rows(settings) * source.vocabulary * (_DRAWN_FROM if settings.draw == "device" else 1)
    free = sum(_GPU_SHARE * gpu.room - _GPU_SCRATCH - logits for gpu in gpus())
    return layers_that_fit(layers, each + tokens * kv_bytes(source, settings.kv_type), outside, int(free))


def layers_that_fit(layers: int, each: int, outside: int, free: int) -> int:
    """Count the layers that a GPU with `free` bytes holds; -1 (llama.cpp's word for all) with those outside them."""
    if layers * each + outside <= free:
        return -1
    return max(0, min(layers, free // each))
