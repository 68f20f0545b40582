"""How long responses are, and where their steps end: of some that the base model gave, or assumed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from genius_lite.data.steps import OpenStep
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.evaluate.signals import too_short
from genius_lite.recipe import Foresight
from genius_lite.records import Finish, Rollout, Step
from genius_lite.text import amount

Source = Literal["rehearsal", "round 1", "assumed"]
_ASSUMED_LENGTH, _ASSUMED_STEP = 0.75, 0.25  # of the token limit; of a response
_SHORT = 48  # tokens


class ResponseLength(msgspec.Struct, frozen=True):
    """The length of a response in tokens, the lengths of it at which a step has just ended, and its value.

    The value, nats per token, is what the search prefers beams by: long responses often have a higher one.
    """

    length: int
    steps: list[int]
    value: float = -0.6


class Ends(msgspec.Struct, frozen=True):
    """How many of some `responses`, of up to `limit` tokens, came to their end, and how many of their thoughts did."""

    limit: int
    responses: int
    ended: int
    thoughts: int
    thoughts_ended: int

    @property
    def line(self) -> str:
        of_all = f"{self.ended / self.responses:.0%} of {amount(self.responses, 'responses')}"
        found = f"{of_all} ended within {self.limit} tokens"
        if self.thoughts:
            found += f", and so did {self.thoughts_ended / self.thoughts:.0%} of {amount(self.thoughts, 'thoughts')}"
        return found


class Lengths(msgspec.Struct, frozen=True):
    """Responses to some queries, a list for each, and the chances that two steps from the same place are the same.

    `repeats` is that of first steps, which often begin alike, `later` that of others. `ends` tells which of the
    responses came to their end; None where none was seen.
    """

    responses: list[list[ResponseLength]]
    repeats: float
    source: Source
    later: float = 0.0
    ends: Ends | None = None

    @property
    def mean(self) -> float:
        """Average the tokens of a response."""
        return statistics.fmean(r.length for rows in self.responses for r in rows)

    @property
    def error(self) -> float:
        """Estimate the standard error of the mean, as a share of it; 0.5 where nothing tells it, and at most.

        It is that over queries, and of what lies beyond the limit at which responses were cut off (`extended`): where
        few ended, little is known of it.
        """
        means = [statistics.fmean(r.length for r in rows) for rows in self.responses]
        if len(means) < 2:
            return 0.5
        among, beyond = statistics.stdev(means) / len(means) ** 0.5 / self.mean, 0.0
        if self.ends:
            guessed = sum(max(0, r.length - self.ends.limit) for rows in self.responses for r in rows)
            every = sum(r.length for rows in self.responses for r in rows)
            beyond = guessed / every / max(1, self.ends.ended) ** 0.5  # a count varies by its root
        return min(0.5, math.hypot(among, beyond))

    def ended(self, limit: int) -> Lengths:
        """Return those that came to their end before the limit; all, where none did."""
        rows = [found for row in self.responses if (found := [r for r in row if r.length < limit])]
        return msgspec.structs.replace(self, responses=rows or self.responses)

    def cut_off(self, cfg: Foresight) -> str | None:
        """Warn where more than a tenth of the responses run into the recipe's limit.

        What is cut off teaches a model not to end: it has been seen to learn longer and longer responses.
        """
        if self.source == "assumed":
            return None
        limit, ends = cfg.response_tokens, self.ends
        cut = statistics.fmean(r.length >= limit for rows in self.responses for r in rows)
        thinking = ends is not None and ends.thoughts_ended < ends.thoughts
        return too_short(cut, limit, cfg.thought_tokens, thinking=thinking)

    def extended(self, seen: int, limit: int) -> Lengths:
        """Extend responses that were cut off at `seen` tokens to what they may have come to, `limit` at most.

        As if a response ended at each token with the same chance: the responses that ended, over all tokens. Those cut
        off get the quantiles of that distribution, and steps of the mean length.
        """
        rows = [r for row in self.responses for r in row]
        cut = sum(r.length >= seen for r in rows)
        if seen >= limit or not cut:
            return self
        chance = (len(rows) - cut) / sum(r.length for r in rows)
        step = max(1, round(sum(r.length for r in rows) / sum(len(r.steps) + 1 for r in rows)))
        longer = iter(
            min(limit, seen + round(-math.log((n + 0.5) / cut) / chance)) if chance else limit for n in range(cut)
        )

        def extend(r: ResponseLength) -> ResponseLength:
            if r.length < seen:
                return r
            end = next(longer)
            return ResponseLength(end, [*r.steps, *range((r.steps or [0])[-1] + step, end, step)], r.value)

        return msgspec.structs.replace(self, responses=[[extend(r) for r in row] for row in self.responses])


def assumed(cfg: Foresight) -> Lengths:
    """Assume three quarters of the limit, in four steps, without a look at the model."""
    length = max(1, round(_ASSUMED_LENGTH * cfg.response_tokens))
    step = max(1, round(_ASSUMED_STEP * length))
    return Lengths([[ResponseLength(length, list(range(step, length, step)))]], 0.0, "assumed")


def shortest(cfg: Foresight) -> Lengths:
    """Assume responses as short as they may well be, for what must not be overestimated."""
    return Lengths([[ResponseLength(min(_SHORT, cfg.response_tokens), [])]], 0.0, "assumed")


def described(rollouts: Sequence[Rollout], vocabulary: Vocabulary, cfg: Foresight, source: Source) -> Lengths:
    """Read lengths off the first steps of rollouts: there the candidates are complete responses, if they were foreseen.

    Args:
        cfg: by which the rollouts were searched.
    """
    firsts = [rollout.steps[0] for rollout in rollouts]
    later = [step for rollout in rollouts for step in rollout.steps[1:]]
    rows, finishes, thoughts = list[list[ResponseLength]](), list[Finish](), list[bool]()
    for rollout in rollouts:
        # Where candidates agreed, they were not foreseen to their end.
        whole = [candidate for candidate in rollout.steps[0].candidates if candidate.last.finish != "step"]
        rows += [[_response(c.tokens, c.value, vocabulary) for c in whole]] if whole else []
        finishes += [c.last.finish for c in whole]
        ended = (vocabulary.said(rollout.query.tokens, c.tokens).thought_ended for c in whole)
        thoughts += [over for over in ended if over is not None]
    return Lengths(
        rows or assumed(cfg).responses,
        _repeated(firsts, cfg.candidates),
        source,
        _repeated(later, cfg.candidates),
        Ends(cfg.response_tokens, len(finishes), finishes.count("end"), len(thoughts), sum(thoughts)) if rows else None,
    )


def _repeated(steps: Sequence[Step], candidates: int) -> float:
    """Estimate the chance that two candidates are the same: on average each had (candidates - 1) / 2 to repeat."""
    repeated = sum(step.repeats for step in steps)
    every = repeated + sum(len(step.candidates) for step in steps)
    return min(1.0, repeated / every / max(0.5, (candidates - 1) / 2)) if every else 0.0


def _response(tokens: list[int], value: float, vocabulary: Vocabulary) -> ResponseLength:
    step = OpenStep(vocabulary.delimiter)
    steps = [place for place, token in enumerate(tokens[:-1], 1) if step.ends(token)]
    return ResponseLength(len(tokens), steps, value)
