"""Do two files speak of the same model? Compared by the log-probabilities that they give to the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node

PROMPTS, TOKENS = 8, 64  # on whose continuations, of so many tokens each, two are compared


async def scores(
    model: Path,
    settings: EngineSettings,
    nodes: Sequence[Node],
    log: Path,
    say: Callable[[str], None],
    *,
    reordered: bool = False,
) -> np.ndarray:
    """Score the nodes' tokens with a file here, nats, (tokens,); `reordered`: sums in another order.

    Those of a node that llama.cpp does not survive are NaN, which `say` is told.
    """
    settings = settings.with_slots(1)
    if reordered:
        other = settings.flash_attention is False
        settings = msgspec.structs.replace(settings, flash_attention=other, kv_type="F16")
    scored: list[list[float]] = []
    async with open_sampler(model, settings, Sampling(1.0), log, say=say) as local:
        for parent, node in ((node.parent, node) for node in nodes if node.parent):
            try:
                scored.append(await local.score(parent.path, node.tokens))
            except QueryFailedError as e:
                say(f"warning: a response to {parent.key[-1]} is not compared: {e}")
                scored.append([math.nan] * len(node.tokens))
    return np.concatenate(scored)
