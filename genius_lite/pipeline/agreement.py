"""Do two models speak alike, and a server as the round's? Compared by the log-probabilities of the same tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from genius_lite.errors import UserError
from genius_lite.pipeline.round import Policy, Round
from genius_lite.recipe import Server
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


async def check_server(r: Round, policy: Policy, cfg: Server, server: Sampler, queries: Sequence[Query]) -> None:
    """Compare what a server samples with the policy's scores of it, which are computed here: it says no hash.

    They have to agree as far as llama.cpp agrees with itself: products with quantized weights round activations to 8
    bits, so that the same file, computed in another order, is 0.002 (F16) to 0.05 (Q4_1 of a 135M model) nats per token
    off, in absolute value. It is therefore scored in two ways, and twice their difference is allowed for.

    A round may have moved its model by less than that. So the base model scores the same tokens, and more than half of
    them may not surely (by two standard errors) be nearer to its scores: tokens are counted because rounding alone
    moves a few of them by half a nat, which would decide any mean.

    Raises:
        UserError: it is another model, or the base model still; or nothing that it says can be compared.
    """
    if not (nodes := await continuations(r, server, queries)):
        raise UserError(f"the server at {cfg.url} survives none of the questions that it was tried with")
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
