"""Do two models speak alike? Compared by the log-probabilities that they give to the same tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from genius_lite.pipeline.round import Policy, Round
from genius_lite.records import Query
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.interface import Sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.tree import Node

_PROMPTS, _TOKENS = 8, 64  # on whose continuations, of so many tokens each, two are compared


async def continuations(r: Round, sampler: Sampler, queries: Sequence[Query]) -> list[Node]:
    """Let a sampler go on with a few of the queries; those that it does not survive are left out, and named."""
    limit, nodes = min(_TOKENS, r.job.recipe.foresight.max_tokens), list[Node]()
    roots = [Node(None, query.tokens, (*r.key, query.id)) for query in queries[:_PROMPTS]]
    asked = [sampler.extend(root, 1, until="end", limit=limit)[0] for root in roots]
    for query, node in zip(queries, await asyncio.gather(*asked, return_exceptions=True), strict=False):
        if isinstance(node, Node):
            nodes.append(node)
        elif not isinstance(node, QueryFailedError):
            raise node
        else:
            r.progress.say(f"warning: query {query.id} is not compared: {node}")
    return nodes


async def scores(r: Round, policy: Policy, nodes: Sequence[Node], *, reordered: bool = False) -> np.ndarray:
    """Score the nodes' tokens with a policy here, nats, (tokens,); `reordered`: sums in another order.

    Those of a node that llama.cpp does not survive are NaN; it is named.
    """
    settings = policy.settings(r.engine).with_slots(1)
    if reordered:
        other = settings.flash_attention is False
        settings = msgspec.structs.replace(settings, flash_attention=other, kv_type="F16")
    scored: list[list[float]] = []
    async with open_sampler(policy.gguf, settings, Sampling(1.0), r.sampler_log, say=r.progress.say) as local:
        for parent, node in ((node.parent, node) for node in nodes if node.parent):
            try:
                scored.append(await local.score(parent.path, node.tokens))
            except QueryFailedError as e:
                r.progress.say(f"warning: a response to {parent.key[-1]} is not compared: {e}")
                scored.append([math.nan] * len(node.tokens))
    return np.concatenate(scored)


def apart(one_T: np.ndarray, other_T: np.ndarray, known_T: np.ndarray) -> float:
    """Return the mean absolute difference of what two scored, nats per token, over the tokens that are known."""
    return float(np.abs(one_T - other_T)[known_T].mean())
