"""What a policy's responses to held-out queries show without any label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean

import msgspec

from genius_lite.foresight.filters import loops
from genius_lite.records import Finish
from genius_lite.results.evaluation import Commonest, Signals

MOST_CUT = 0.1  # share of responses that may be cut off: what they miss cannot be learned
_ANSWERED = 4  # questions, of fewer of which one answer to all may well be right
_WINDOW = 32  # 2-grams among which different ones are counted


class Observed(msgspec.Struct, frozen=True):
    """A response to a held-out query, sampled at temperature 1 from the raw distribution.

    `logprobs` are the policy's own, `base_logprobs` the base model's of the same tokens, nats; the latter are empty
    where the policy is the base model. `answer` is the final answer that it states, if any; `thought_ended` whether
    its thought came to its end, None where it has none.
    """

    query_id: str
    tokens: list[int]
    logprobs: list[float]
    base_logprobs: list[float]
    finish: Finish
    answer: str | None
    thought_ended: bool | None = None


def signals(observed: Sequence[Observed]) -> Signals:
    """The signals of one response or more. Log-probabilities that are not finite give signals that are not.

    Raises:
        ValueError: the two models' log-probabilities differ in number.
    """
    ended: dict[str, list[Observed]] = defaultdict(list)
    for response in observed:
        if response.finish == "end":
            ended[response.query_id].append(response)
    several = {query: responses for query, responses in ended.items() if len(responses) > 1}
    agreements = {query: _alike([r.answer for r in responses]) for query, responses in several.items()}
    stated = [response.answer is not None for responses in ended.values() for response in responses]
    logprobs = [logprob for response in observed for logprob in response.logprobs]
    same = commonest([r.answer for r in responses] for responses in ended.values())
    return Signals(
        entropy=0.0 - fmean(logprobs),  # not -0.0
        distinct=fmean(_distinct(response.tokens) for response in observed),
        loops=fmean(loops(response.tokens) for response in observed),
        length=fmean(len(response.tokens) for response in observed),
        ended=fmean(response.finish == "end" for response in observed),
        thinking=fmean(response.thought_ended is False for response in observed),
        unique=_mean([1 - _alike([*map(_said, responses)]) / 2 for responses in several.values()]),
        agreement=_mean(list(agreements.values())),
        parsed=fmean(stated) if stated else 0.0,
        kl=_divergence(observed),
        responses=len(observed),
        agreements=agreements,
        same=same.share if same else None,
        compared=sum(map(len, several.values())),
        stated=sum(stated),
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


def _alike(said: Sequence[Hashable]) -> float:
    """Say how often two of these are alike, None being like nothing: however many they are, as no share of them is."""
    counts = Counter(each for each in said if each is not None).values()
    return sum(count * (count - 1) for count in counts) / (len(said) * (len(said) - 1))


def commonest(by_question: Iterable[Iterable[str | None]]) -> Commonest | None:
    """Find the answer that is given most, each question alike; None where fewer than four have an answer."""
    given = [[answer for answer in answers if answer is not None] for answers in by_question]
    answered = [answers for answers in given if answers]
    if len(answered) < _ANSWERED:
        return None
    shares = defaultdict[str, float](float)
    for answers in answered:
        for answer in answers:
            shares[answer] += 1 / (len(answers) * len(answered))
    answer = max(shares, key=shares.__getitem__)
    return Commonest(answer, min(shares[answer], 1.0))  # all of them may sum to a little more


def _divergence(observed: Sequence[Observed]) -> float:
    ratios = [
        own - base
        for response in observed
        if response.base_logprobs
        for own, base in zip(response.logprobs, response.base_logprobs, strict=True)
    ]
    # Of policies that hardly differ chance may take the mean below 0, where no divergence is; NaN stays one.
    return 0.0 if not ratios or (mean := fmean(ratios)) < 0 else mean


def too_short(cut: float, limit: int, thought: int, *, thinking: bool) -> str | None:
    """Warn that this share of the base model's responses is cut off, if it is more than a tenth.

    Args:
        limit: the longest response, in tokens, of which `thought` are `foresight.thought_tokens`.
        thinking: some are cut off in their thoughts.
    """
    if cut <= MOST_CUT:
        return None
    longer = f"foresight.max_tokens: {2 * limit - thought}, or ask for shorter answers in queries.system"
    if thinking:
        longer = f"foresight.thought_tokens: {limit + thought}, or switch thoughts off in queries.template"
    return (
        f"{cut:.0%} of the base model's responses are cut off at {limit} tokens: what they would have come to cannot "
        f"be learned; write {longer}"
    )
