"""An engine driven by hand."""

from __future__ import annotations

from collections.abc import Sequence

from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Extend, Extended, Sampling

NORMAL = Sampling(0.9)


def settings(**options) -> EngineSettings:
    return EngineSettings(**{"slots": 4, "context": 256, "threads": 2, "flash_attention": False, **options})


def drain(engine: Engine) -> list:
    replies = []
    while engine.busy:
        replies += engine.decode_step()
    return replies


def extend(
    engine: Engine, path: list[int], seeds: Sequence[int | None], *, until="end", limit=12, sampling=NORMAL, id=0
):
    engine.submit(Extend(id, path, [*seeds], until, limit, sampling))
    found = [r for r in drain(engine) if isinstance(r, Extended) and r.id == id]
    return [r.completion for r in sorted(found, key=lambda r: r.index)]


PROMPT = [257, 72, 101, 108, 108, 111, 10, 258]
