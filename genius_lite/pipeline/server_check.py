"""Whether a server holds the model that a round samples: it says no hash of it, so log-probabilities are compared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.pipeline.agreement import apart, continuations, scores
from genius_lite.pipeline.round import Policy, Round
from genius_lite.recipe import Server
from genius_lite.records import Query
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.server import ServerSampler, open_server_sampler
from genius_lite.sampler.server_key import is_open
from genius_lite.sampler.tree import Node


@asynccontextmanager
async def open_checked_server(
    r: Round, policy: Policy, cfg: Server, vocabulary: Vocabulary, sampling: Sampling, queries: list[Query]
) -> AsyncIterator[ServerSampler]:
    """Open the recipe's server, once it has shown that it holds the round's policy.

    Raises:
        UserError: it cannot be used, or holds another model; or it does not answer any more, which loses nothing.
    """
    try:
        async with open_server_sampler(cfg, vocabulary, sampling, queries[0].tokens) as server:
            if is_open(cfg.url):
                r.progress.say(f"warning: the key goes to {cfg.url} without encryption; take https, or a tunnel")
            if not (nodes := await continuations(r, server, queries)):
                raise UserError(f"the server at {cfg.url} survives none of the questions that it was tried with")
            await _check(r, policy, cfg, nodes)
            yield server
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _check(r: Round, policy: Policy, cfg: Server, nodes: list[Node]) -> None:
    """Compare what the server sampled with the policy's scores of it, which are computed here.

    They have to agree as far as llama.cpp agrees with itself: products with quantized weights round activations to 8
    bits, so that the same file, computed in another order, is 0.002 (F16) to 0.05 (Q4_1 of a 135M model) nats per token
    off, in absolute value. It is therefore scored in two ways, and twice their difference is allowed for.

    A round may have moved its model by less than that. So the base model scores the same tokens, and more than half of
    them may not surely (by two standard errors) be nearer to its scores: tokens are counted because rounding alone
    moves a few of them by half a nat, which would decide any mean.

    Raises:
        UserError: it is another model, or the base model still.
    """
    ours_T, again_T = await scores(r, policy, nodes), await scores(r, policy, nodes, reordered=True)
    theirs_T = np.concatenate([node.completion.logprobs for node in nodes if node.completion])
    known_T = np.isfinite(ours_T) & np.isfinite(again_T)
    if not known_T.any():
        raise UserError(f"round {r.number}: llama.cpp survives none of what {cfg.url} sampled; see {r.sampler_log}")
    off, rounding = apart(theirs_T, ours_T, known_T), apart(again_T, ours_T, known_T)
    remedy = f"load {_files(policy)} there and give the same command again"
    if off > (allowed := cfg.tolerance + 2 * rounding):
        raise UserError(
            f"round {r.number}: the server at {cfg.url} holds another model: {off:.3f} nats per token from this "
            f"round's, and {allowed:.3f} is allowed; {remedy}"
        )
    base = Policy(policy.gguf if policy.lora else r.job.source.path)
    if base != policy:
        base_T = await scores(r, base, nodes)
        known_T &= np.isfinite(base_T)
        nearer, doubt = (np.abs(theirs_T - base_T) < np.abs(theirs_T - ours_T))[known_T], known_T.sum() ** -0.5
        if nearer.mean() > 0.5 + doubt:
            raise UserError(f"round {r.number}: the server at {cfg.url} holds {_files(base)} still; {remedy}")
        if nearer.mean() > 0.5 - doubt:
            r.progress.say(
                f"warning: round {r.number}: whether {cfg.url} holds this round's model or {_files(base)} cannot be "
                f"told, so alike are they; it has to be {_files(policy)}"
            )
    r.progress.say(
        f"round {r.number}: {cfg.url} samples; its log-probabilities are {off:.4f} nats per token from ours, "
        f"and ours {rounding:.4f} from each other"
    )


def _files(policy: Policy) -> str:
    return f"{policy.gguf}{f' with the adapter {policy.lora}' if policy.lora else ''}"
