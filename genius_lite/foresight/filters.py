"""Which preference pairs are learned from. A filter never changes a pair; what it leaves out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property

from genius_lite.foresight.repetition import loops
from genius_lite.recipe import Pairs
from genius_lite.records import PreferencePair, Rollout

FILTERS = ("gap", "looping", "truncated", "length", "agreement")
"""In the order in which they look at a pair."""

Answer = Callable[[list[int]], str | None]
"""The final answer that the tokens of a response state, or None; equal answers are equal strings."""


class Vote:
    """How a query's responses vote on its answer (self-consistency, Wang et al., arXiv 2203.11171).

    Each distinct response of the foreseen steps that came to its end and states a final answer has one vote; responses
    here share their first steps. Nobody is asked before something has to be decided, and each response once.
    """

    def __init__(self, rollout: Rollout, answer: Answer):
        self._rollout, self._answer = rollout, answer

    def stated(self, response: list[int]) -> str | None:
        """The final answer of one of the responses; None without one, and of a response that was cut off."""
        return self._stated[tuple(response)]

    def votes(self, response: list[int]) -> int:
        """For its answer, its own included."""
        stated = self.stated(response)
        return 0 if stated is None else self._votes[stated]

    @property
    def total(self) -> int:
        """All votes."""
        return self._votes.total()

    @cached_property
    def _stated(self) -> dict[tuple[int, ...], str | None]:
        found: dict[tuple[int, ...], str | None] = {}
        for step in (step for step in self._rollout.steps if step.foreseen):  # others have no complete responses
            for i, candidate in enumerate(step.candidates):
                response = self._rollout.response(step.index, i)
                if tuple(response) not in found:
                    found[tuple(response)] = self._answer(response) if candidate.last.finish == "end" else None
        return found

    @cached_property
    def _votes(self) -> Counter[str]:
        return Counter(stated for stated in self._stated.values() if stated is not None)


def unfit(response: list[int], ended: bool, cfg: Pairs, vote: Vote) -> bool:
    """Whether a filter refuses every pair with this chosen response, whatever the rejected one is.

    Args:
        ended: whether the response came to its end.
        vote: of the rollout that it comes from.
    """
    return (
        (cfg.looping != "keep" and loops(response))
        or (cfg.truncated != "keep" and not ended)
        or (cfg.agreement is not None and not _backed(response, cfg.agreement, vote))
    )


def refusal(pair: PreferencePair, cfg: Pairs, vote: Vote) -> str | None:
    """The first filter that refuses the pair; None if all let it pass. The costly ones look only if asked for.

    - gap: f of the chosen response exceeds that of the rejected one by less than `min_gap`, nats per token.
    - looping: the chosen, or either, response ends in a repetition.
    - truncated: the chosen, or either, response was cut off at a token limit.
    - length: one response has more than `max_length_ratio` times the tokens of the other.
    - agreement: the chosen response's answer has less than this share of the votes, or the rejected one states no other
      answer. Where no response states one nothing can be judged, and the pair stays.

    Args:
        vote: of the rollout that the pair comes from.
    """
    # Randomly chosen pairs may have a negative gap: without a least gap it is none of this filter's business.
    if cfg.least_gap and pair.chosen_value - pair.rejected_value < cfg.least_gap:
        return "gap"
    if any(loops(tokens) for tokens in (pair.chosen_tokens, pair.rejected_tokens)[: _judged(cfg.looping)]):
        return "looping"
    if not all((pair.chosen_ended, pair.rejected_ended)[: _judged(cfg.truncated)]):
        return "truncated"
    shorter, longer = sorted((len(pair.chosen_tokens), len(pair.rejected_tokens)))
    if cfg.max_length_ratio is not None and longer / shorter > cfg.max_length_ratio:
        return "length"
    if cfg.agreement is not None and not _agreed(pair, cfg.agreement, vote):
        return "agreement"
    return None


def _judged(setting: str) -> int:
    """How many of (chosen, rejected) a filter looks at."""
    return {"keep": 0, "chosen": 1, "either": 2}[setting]


def _agreed(pair: PreferencePair, share: float, vote: Vote) -> bool:
    """Whether the vote is for the chosen response's answer, and the rejected one's is another."""
    another = vote.stated(pair.rejected_tokens) not in (None, vote.stated(pair.chosen_tokens))
    return _backed(pair.chosen_tokens, share, vote) and (another or not vote.total)


def _backed(response: list[int], share: float, vote: Vote) -> bool:
    """Whether the response's answer has this share of the votes, if there are any."""
    return not vote.total or vote.votes(response) / vote.total >= share
