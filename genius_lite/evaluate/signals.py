"""What a policy's responses to held-out queries show without any label."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from statistics import fmean

import msgspec

from genius_lite.foresight.repetition import loops
from genius_lite.records import Finish

_WINDOW = 32  # 2-grams among which different ones are counted
_HIGHEST = 100  # of a log-ratio: a token that the policy gives exp(-100) is never drawn


class Observed(msgspec.Struct, frozen=True):
    """A response to a held-out query, sampled at temperature 1 from the raw distribution.

    `logprobs` are the policy's own, `base_logprobs` the base model's of the same tokens, nats; the latter are empty
    where the policy is the base model. `answer` is the final answer that it states, if any.
    """

    query_id: str
    tokens: list[int]
    logprobs: list[float]
    base_logprobs: list[float]
    finish: Finish
    answer: str | None


class Signals(msgspec.Struct, frozen=True):
    """Means over the responses to all held-out queries.

    - entropy: nats per token, every token alike. At temperature 1 minus the log-probability of a sampled token is an
      unbiased estimate of the entropy it was drawn with.
    - distinct: share of different token 2-grams among all (distinct-n, Li et al., arXiv 1510.03055). It falls as a
      text grows, so it is counted in windows of 32 2-grams, and averaged over all windows of a response and then over
      responses (as the moving-average type-token ratio, Covington and McFall, 2010): a repetition counts wherever it
      is. A shorter response is one window of what it has; fewer 2-grams repeat less, so that shrinking alone never
      looks like repetition.
    - loops: share of responses that end in a repetition (`repetition.loops`).
    - length: tokens. ended: share that ended with an end token.
    - parsed: share of the responses that ended which state an answer. One that was cut off has not come to its own.
    - unique: different answers to a query per response that ended; one that states none counts by its tokens.
    - agreement: share of a query's responses that give its most frequent answer (self-consistency, Wang et al., arXiv
      2203.11171), of those that ended; one without an answer agrees with none. `agreements` has it by query. Both are
      over queries with two such responses at least, and None where there is no such query.
    - kl: KL(policy || base), nats per token, by the estimator r - 1 - log r with r = base / policy (J. Schulman,
      "Approximating KL divergence", 2020) over the tokens that the policy drew; 0 for the base model.
    - responses: how many these are means over.
    """

    entropy: float
    distinct: float
    loops: float
    length: float
    ended: float
    unique: float | None
    agreement: float | None
    parsed: float
    kl: float
    responses: int
    agreements: dict[str, float] = {}


def signals(observed: Sequence[Observed]) -> Signals:
    """The signals of some responses. Log-probabilities that are not finite give signals that are not.

    Raises:
        ValueError: there is none, or the two models' log-probabilities differ in number.
    """
    if not observed:
        raise ValueError("no response to look at")
    ended: dict[str, list[Observed]] = defaultdict(list)
    for response in observed:
        if response.finish == "end":
            ended[response.query_id].append(response)
    several = {query: responses for query, responses in ended.items() if len(responses) > 1}
    agreements = {query: _agreement(responses) for query, responses in several.items()}
    stated = [response.answer is not None for responses in ended.values() for response in responses]
    logprobs = [logprob for response in observed for logprob in response.logprobs]
    return Signals(
        entropy=0.0 - fmean(logprobs),  # not -0.0
        distinct=fmean(_distinct(response.tokens) for response in observed),
        loops=fmean(loops(response.tokens) for response in observed),
        length=fmean(len(response.tokens) for response in observed),
        ended=fmean(response.finish == "end" for response in observed),
        unique=_mean([len({_said(r) for r in responses}) / len(responses) for responses in several.values()]),
        agreement=_mean(list(agreements.values())),
        parsed=fmean(stated) if stated else 0.0,
        kl=_divergence(observed),
        responses=len(observed),
        agreements=agreements,
    )


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _distinct(tokens: list[int]) -> float:
    """A 2-gram is a new one in every window that holds it and not its last occurrence before."""
    grams = list(pairwise(tokens))
    width = min(_WINDOW, len(grams))
    windows = len(grams) - width + 1
    new, latest = 0, {}
    for at, gram in enumerate(grams):
        first, last = max(at - width, latest.get(gram, -1)) + 1, min(at, windows - 1)
        new += max(last - first + 1, 0)
        latest[gram] = at
    return new / (windows * width) if grams else 1.0


def _said(response: Observed) -> Hashable:
    return response.answer if response.answer is not None else tuple(response.tokens)


def _agreement(responses: list[Observed]) -> float:
    answers = Counter(response.answer for response in responses if response.answer is not None)
    return max(answers.values(), default=0) / len(responses)


def _divergence(observed: Sequence[Observed]) -> float:
    terms = [
        _divergence_term(base - own)
        for response in observed
        if response.base_logprobs
        for own, base in zip(response.logprobs, response.base_logprobs, strict=True)
    ]
    return fmean(terms) if terms else 0.0


def _divergence_term(log_ratio: float) -> float:
    # expm1 raises where it overflows; the guard is to see an infinity instead.
    return math.inf if log_ratio > _HIGHEST else math.expm1(log_ratio) - log_ratio
