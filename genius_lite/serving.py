"""A round whose rollouts a server samples: it has to hold the very model that the round is about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import Server
from genius_lite.records import Query
from genius_lite.round import Policy, Round
from genius_lite.sampler.client import SetAsideError, open_sampler
from genius_lite.sampler.messages import Sampling
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
    agree; a difference under the recipe's tolerance is not noticed.

    Raises:
        UserError: it cannot be used, or holds another model; or it does not answer any more, which loses nothing.
    """
    probes = [Node(None, query.tokens, (*r.key, query.id)) for query in queries[:_PROBES]]
    try:
        async with open_server_sampler(cfg, vocabulary, sampling, probes[0].tokens) as server:
            apart = await _distance(r, policy, server, sampling, probes)
            if apart > cfg.tolerance:
                held = f"{policy.gguf}{f' with the adapter {policy.lora}' if policy.lora else ''}"
                raise UserError(
                    f"round {r.number}: the server at {cfg.url} holds another model: {apart:.3f} nats per token from "
                    f"this round's, and {cfg.tolerance:g} is allowed; load {held} there and give the same command again"
                )
            r.progress.say(
                f"round {r.number}: {cfg.url} samples; its log-probabilities are {apart:.4f} nats per token from ours"
            )
            yield server
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _distance(r: Round, policy: Policy, server: ServerSampler, sampling: Sampling, probes: list[Node]) -> float:
    """Nats per token between the server and the policy's own file."""
    settings = msgspec.structs.replace(policy.settings(r.engine), slots=1, parked=0)
    limit = min(_PROBED_TOKENS, r.job.recipe.foresight.max_tokens)
    async with open_sampler(policy.gguf, settings, sampling, r.here / "sampler.log") as local:
        try:
            return await server.distance(probes, limit, local.score)
        except SetAsideError as e:
            raise UserError(str(e)) from None
