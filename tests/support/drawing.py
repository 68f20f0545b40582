"""The same requests drawn on the host and on the device."""

from __future__ import annotations

import numpy as np

from genius_lite.sampler.device import OnDevice
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import Extend, Extended, Sampling, Score, Scored
from genius_lite.sampler.sampling import DRAWS, OnHost
from tests.support.engine import PROMPT, drain, settings

FILTERED = Sampling(0.8, top_k=40, top_p=0.95, min_p=0.02)
SAMPLINGS = [
    Sampling(1.0),
    Sampling(0.6),
    Sampling(1.0, top_k=1),
    Sampling(2.0, top_k=5),
    Sampling(1.0, top_p=0.7),
    Sampling(1.5, min_p=0.1),
    FILTERED,
]


def completions(engine: Engine, requests: list[Extend | Score]) -> list:
    """Answer all requests together; what came of them, in their order."""
    for request in requests:
        engine.submit(request)
    extended, scored = {}, {}
    for reply in drain(engine):
        if isinstance(reply, Extended):
            extended[reply.id, reply.index] = reply.completion
        elif isinstance(reply, Scored):
            scored[reply.id] = reply.logprobs
    return [extended[key] for key in sorted(extended)], [scored[key] for key in sorted(scored)]


def both(path, requests, **options) -> tuple:
    engines = [Engine(str(path), settings(draw=draw, **options)) for draw in ("host", "device")]
    assert isinstance(engines[0].drawing, OnHost)
    assert isinstance(engines[1].drawing, OnDevice)
    return tuple(completions(engine, requests) for engine in engines)


def mixed(samplings: list[Sampling], vocabulary: int, limit: int = 10) -> list[Extend | Score]:
    """Requests of all kinds at once: branches of one path (more than slots, and than draws of a row), other paths,
    responses that are scored, some of their tokens next to impossible."""
    rng = np.random.default_rng(1)
    requests: list[Extend | Score] = []
    for number, sampling in enumerate(samplings):
        path = [*PROMPT, number, number + 3]
        requests.append(Extend(number, path, [number * 20 + n for n in range(DRAWS + 3)], "limit", limit, sampling))
        requests.append(Score(100 + number, path, rng.integers(0, vocabulary, 70).tolist()))
    return requests
