"""A round whose rollouts a server samples: it has to hold the very model that the round is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np

from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import Server
from genius_lite.records import Query
from genius_lite.round import Policy, Round
from genius_lite.sampler.client import SetAsideError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.server import ServerSampler, open_server_sampler
from genius_lite.sampler.tree import Node

_PROBES = 4  # prompts, of `_PROBED_TOKENS` each, on whose continuations server and policy are compared
_PROBED_TOKENS = 32


@asynccontextmanager
async def open_server_of(
    r: Round, policy: Policy, cfg: Server, vocabulary: Vocabulary, sampling: Sampling, queries: list[Query]
) -> AsyncIterator[ServerSampler]:
    """The recipe's server, once it has shown that it holds the round's policy.

    A server says no hash of its model. So it samples a little, the policy's file scores that here, and the two have to
    agree, as far as llama.cpp agrees with itself: products with quantized weights round activations to 8 bits, so that
    the same file, computed in another order, is 0.002 (F16) to 0.05 (Q4_1 of a 135M model) nats per token off, in
    absolute value. It is therefore scored here in two ways, and twice their difference is allowed for. What is less
    than that and the recipe's tolerance is not noticed.

    Raises:
        UserError: it cannot be used, or holds another model; or it does not answer any more, which loses nothing.
    """
    probes = [Node(None, query.tokens, (*r.key, query.id)) for query in queries[:_PROBES]]
    try:
        async with open_server_sampler(cfg, vocabulary, sampling, probes[0].tokens) as server:
            apart, rounding = await _distance(r, policy, server, sampling, probes)
            if apart > (allowed := cfg.tolerance + 2 * rounding):
                held = f"{policy.gguf}{f' with the adapter {policy.lora}' if policy.lora else ''}"
                raise UserError(
                    f"round {r.number}: the server at {cfg.url} holds another model: {apart:.3f} nats per token from "
                    f"this round's, and {allowed:.3f} is allowed; load {held} there and give the same command again"
                )
            r.progress.say(
                f"round {r.number}: {cfg.url} samples; its log-probabilities are {apart:.4f} nats per token from ours, "
                f"and ours {rounding:.4f} from each other"
            )
            yield server
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _distance(
    r: Round, policy: Policy, server: ServerSampler, sampling: Sampling, probes: list[Node]
) -> tuple[float, float]:
    """Nats per token between the server and the policy's own file, and between two ways to compute the latter."""
    settings = msgspec.structs.replace(policy.settings(r.engine), slots=1, parked=0)
    otherwise = msgspec.structs.replace(settings, flash_attention=settings.flash_attention is False, kv_type="F16")
    limit = min(_PROBED_TOKENS, r.job.recipe.foresight.max_tokens)

    async def scores(way: EngineSettings) -> np.ndarray:
        async with open_sampler(policy.gguf, way, sampling, r.here / "sampler.log") as local:
            found = [await local.score(node.path, each.tokens) for node, each in zip(probes, grown, strict=True)]
        return np.concatenate(found)

    try:
        futures = [server.extend(node, 1, until="end", limit=limit)[0] for node in probes]
        grown = [node.completion for node in await asyncio.gather(*futures) if node.completion]
        theirs = np.concatenate([completion.logprobs for completion in grown])
        ours, again = await scores(settings), await scores(otherwise)
    except SetAsideError as e:
        raise UserError(str(e)) from None
    return float(np.abs(theirs - ours).mean()), float(np.abs(again - ours).mean())
