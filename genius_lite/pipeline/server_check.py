"""A round whose rollouts a server samples: it has to hold the very model that the round is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import numpy as np

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.pipeline.round import Policy, Round
from genius_lite.recipe import Server
from genius_lite.records import Query
from genius_lite.rundir.folder import LORA
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.sampler.server import ServerSampler, open_server_sampler
from genius_lite.sampler.tree import Node

_PROBES = 8  # prompts, of `_PROBED_TOKENS` each, on whose continuations server and policy are compared
_PROBED_TOKENS = 64
_SURE = 2.0  # standard errors


@asynccontextmanager
async def open_server_of(
    r: Round, policy: Policy, cfg: Server, vocabulary: Vocabulary, sampling: Sampling, queries: list[Query]
) -> AsyncIterator[ServerSampler]:
    """The recipe's server, once it has shown that it holds the round's policy.

    A server says no hash of its model. So it samples a little, the policy's file scores that here, and the two have to
    agree, as far as llama.cpp agrees with itself: products with quantized weights round activations to 8 bits, so that
    the same file, computed in another order, is 0.002 (F16) to 0.05 (Q4_1 of a 135M model) nats per token off, in
    absolute value. It is therefore scored here in two ways, and twice their difference is allowed for.

    A round may have moved its model by less than that. So the models of the rounds before score the same tokens, and
    none of them may surely be nearer to what the server says than this round's.

    Raises:
        UserError: it cannot be used, or holds another model; or it does not answer any more, which loses nothing.
    """
    probes = [Node(None, query.tokens, (*r.key, query.id)) for query in queries[:_PROBES]]
    try:
        async with open_server_sampler(cfg, vocabulary, sampling, probes[0].tokens) as server:
            try:
                r.progress.say(await _verdict(r, policy, cfg, server, sampling, probes))
            except QueryFailedError as e:
                raise UserError(str(e)) from None
            yield server
    except ExceptionGroup as failures:
        if refused := failures.subgroup(UserError):
            raise first_of(refused) from None
        raise


async def _verdict(
    r: Round, policy: Policy, cfg: Server, server: ServerSampler, sampling: Sampling, probes: list[Node]
) -> str:
    """How far the server is from the round's policy, where that is near enough.

    Raises:
        UserError: it is not, or an earlier round's policy is nearer.
        QueryFailedError: it does not answer.
    """
    said = await _sampled(server, probes, min(_PROBED_TOKENS, r.job.recipe.foresight.max_tokens))
    ours_T = await _scores(r, policy, sampling, said)
    again_T = await _scores(r, policy, sampling, said, otherwise=True)
    apart, rounding = _distance(said.logprobs_T, ours_T), _distance(again_T, ours_T)
    if apart > (allowed := cfg.tolerance + 2 * rounding):
        raise UserError(
            f"round {r.number}: the server at {cfg.url} holds another model: {apart:.3f} nats per token from this "
            f"round's, and {allowed:.3f} is allowed; {_remedy(policy)}"
        )
    for other in _earlier(r, policy):
        doubt = nearer(said.logprobs_T, await _scores(r, other, sampling, said), ours_T)
        if doubt > _SURE:
            raise UserError(f"round {r.number}: the server at {cfg.url} holds {_files(other)} still; {_remedy(policy)}")
        if doubt > -_SURE:
            r.progress.say(
                f"warning: round {r.number}: whether {cfg.url} holds this round's model or {_files(other)} cannot be "
                f"told, so alike are they; it has to be {_files(policy)}"
            )
    return (
        f"round {r.number}: {cfg.url} samples; its log-probabilities are {apart:.4f} nats per token from ours, "
        f"and ours {rounding:.4f} from each other"
    )


@dataclass(frozen=True)
class _Said:
    """What a server went on with after each prompt, and its log-probability of each token: nats, all in one array."""

    prompts: list[list[int]]
    responses: list[list[int]]
    logprobs_T: np.ndarray


async def _sampled(server: ServerSampler, probes: list[Node], limit: int) -> _Said:
    grown = await asyncio.gather(*(server.extend(node, 1, until="end", limit=limit)[0] for node in probes))
    completions = [node.completion for node in grown if node.completion]
    logprobs_T = np.concatenate([completion.logprobs for completion in completions])
    return _Said([node.path for node in probes], [completion.tokens for completion in completions], logprobs_T)


async def _scores(r: Round, policy: Policy, sampling: Sampling, said: _Said, *, otherwise: bool = False) -> np.ndarray:
    """A policy's log-probabilities of what was said, computed here, (tokens,); `otherwise`: in another order."""
    way = msgspec.structs.replace(policy.settings(r.engine), slots=1, parked=0)
    if otherwise:
        way = msgspec.structs.replace(way, flash_attention=way.flash_attention is False, kv_type="F16")
    async with open_sampler(policy.gguf, way, sampling, r.here / "sampler.log") as local:
        return np.concatenate(
            [await local.score(prompt, tokens) for prompt, tokens in zip(said.prompts, said.responses, strict=True)]
        )


def _distance(one_T: np.ndarray, other_T: np.ndarray) -> float:
    """Nats per token, in absolute value."""
    return float(np.abs(one_T - other_T).mean())


def nearer(theirs_T: np.ndarray, other_T: np.ndarray, ours_T: np.ndarray) -> float:
    """By how many standard errors more than half of the tokens are nearer to the other's log-probability than to ours.

    A sign test: rounding alone moves a few tokens by half a nat, and they would decide any mean. Of two models that
    say the same neither is nearer: minus infinity, as either will do.
    """
    if np.array_equal(other_T, ours_T):
        return -np.inf
    sign_T = np.sign(np.abs(theirs_T - ours_T) - np.abs(theirs_T - other_T))
    return float(sign_T.sum() / max(1.0, np.abs(sign_T).sum()) ** 0.5)


def _earlier(r: Round, policy: Policy) -> Iterator[Policy]:
    """The models that the rounds before this one sampled from, or might have, but for the one that it does."""
    if policy.gguf != r.job.source.path or policy.lora:
        yield Policy(r.job.source.path)
    for number in range(1, r.number):
        made = r.folder.round(number)
        lora = made.path / LORA
        held = Policy(r.baseline.gguf, made.adapter, lora) if lora.exists() else Policy(made.policy, made.adapter)
        if held.adapter != policy.adapter and held.gguf.exists():  # a shard has no earlier rounds
            yield held


def _files(policy: Policy) -> str:
    return f"{policy.gguf}{f' with the adapter {policy.lora}' if policy.lora else ''}"


def _remedy(policy: Policy) -> str:
    return f"load {_files(policy)} there and give the same command again"
