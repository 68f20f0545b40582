"""Which preference pairs are learned from. A filter never changes a pair; what it leaves out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

from genius_lite.recipe import Pairs
from genius_lite.records import PreferencePair, Rollout

FILTERS = {
    "gap": "values too close",
    "looping": "in a loop",
    "truncated": "cut off",
    "length": "lengths too different",
    "agreement": "answers do not agree",
}
"""In the order in which they look at a pair, and what each refuses."""

_LONGEST_UNIT = 32  # tokens: a sentence or two
_REPEATS = 3  # of the unit, the last one perhaps cut off
_STRETCH = 24  # tokens that the repetition must cover, so that a unit of 6 or fewer is said 4 times at least

_JUDGED = {"keep": 0, "chosen": 1, "either": 2}  # how many of (chosen, rejected) a filter looks at

Answer = Callable[[list[int]], str | None]
"""The final answer that the tokens of a response state, or None; equal answers are equal strings."""


class Vote:
    """How a query's responses vote on its answer (self-consistency, Wang et al., arXiv 2203.11171).

    Each response of the foreseen steps that came to its end and states a final answer has a vote. Those of a search
    share their first steps, and one that is found again, in its step or at a later one, has no second vote (counting
    repeats cost the quickstart 15 points, recipes/RESULTS.md). Those of `steps: 0` share nothing, and vote as often as
    they were drawn. Nobody is asked before something has to be decided, and each distinct response once.
    """

    def __init__(self, rollout: Rollout, answer: Answer):
        self._rollout, self._answer = rollout, answer

    def stated(self, response: list[int]) -> str | None:
        """Return the final answer of one of the responses; None without one, and of a response that was cut off."""
        return self._stated[tuple(response)]

    def votes(self, response: list[int]) -> int:
        """Count the votes for its answer, its own included."""
        return self._votes[self.stated(response)]  # none for None

    def lead(self, chosen: list[int], rejected: list[int]) -> float:
        """Return by which share of all votes one response's answer leads another's."""
        return (self.votes(chosen) - self.votes(rejected)) / self.total

    def backs(self, response: list[int], share: float) -> bool:
        """Say whether its answer has this share of the votes, if there are any."""
        return not self.total or self.votes(response) / self.total >= share

    @property
    def total(self) -> int:
        """All votes."""
        return self._votes.total()

    @cached_property
    def _stated(self) -> dict[tuple[int, ...], str | None]:
        """What each distinct response states."""
        return {response: self._answer([*response]) if ends else None for (response, ends), _ in self._times.items()}

    @cached_property
    def _votes(self) -> Counter[str | None]:
        found = Counter[str | None]()
        for (response, _), times in self._times.items():
            if (stated := self._stated[response]) is not None:
                found[stated] += times
        return found

    @cached_property
    def _times(self) -> Counter[tuple[tuple[int, ...], bool]]:
        """Responses, whether they came to their end, and how often a step has them: of a search, once at most."""
        found = Counter[tuple[tuple[int, ...], bool]]()
        for step in (step for step in self._rollout.steps if step.foreseen):  # others have no complete responses
            ends = (candidate.last.finish == "end" for candidate in step.candidates)
            responses = (tuple(self._rollout.response(step.index, i)) for i in range(len(step.candidates)))
            found |= Counter(zip(responses, ends, strict=True))
        return found


def unfit(response: list[int], ended: bool, cfg: Pairs, vote: Vote) -> bool:
    """Say whether a filter refuses every pair with this chosen response, whatever the rejected one is.

    Args:
        ended: whether it came to its end.
        vote: of its rollout.
    """
    return (
        (cfg.looping != "keep" and loops(response))
        or (cfg.truncated != "keep" and not ended)
        or (cfg.agreement is not None and not vote.backs(response, cfg.agreement))
    )


def refusal(pair: PreferencePair, cfg: Pairs, vote: Vote) -> str | None:
    """Return the first of `FILTERS` that refuses the pair; None if all let it pass. The costly one looks last.

    agreement: the chosen response's answer has less than this share of the votes, or the rejected one states no other
    answer. Where no response states one nothing can be judged, and the pair stays.

    Args:
        vote: of the rollout that the pair comes from.
    """
    # Randomly chosen pairs may have a negative gap: without a least gap it is none of this filter's business.
    if cfg.least_gap and pair.chosen_value - pair.rejected_value < cfg.least_gap:
        return "gap"
    if any(loops(tokens) for tokens in (pair.chosen_tokens, pair.rejected_tokens)[: _JUDGED[cfg.looping]]):
        return "looping"
    if not all((pair.chosen_ended, pair.rejected_ended)[: _JUDGED[cfg.truncated]]):
        return "truncated"
    shorter, longer = sorted((len(pair.chosen_tokens), len(pair.rejected_tokens)))
    if cfg.max_length_ratio is not None and longer / shorter > cfg.max_length_ratio:
        return "length"
    if cfg.agreement is not None and vote.total:
        another = vote.stated(pair.rejected_tokens) not in (None, vote.stated(pair.chosen_tokens))
        if not another or not vote.backs(pair.chosen_tokens, cfg.agreement):
            return "agreement"
    return None


def loops(tokens: Sequence[int]) -> bool:
    """Say whether a response ends in one unit of up to 32 tokens, said three times or more, over 24 tokens at least.

    Such responses are likely to themselves, so that foresight rewards them. Repeating makes the next repetition
    likelier (Xu et al., "Learning to Break the Loop", arXiv 2206.02369), so that a loop seldom stops before the token
    limit, and the stretch can be asked to be long. "1, 1, 1", "ha ha ha", a ruler or a table's separator are shorter; a
    list whose numbers count on has units that differ. A loop counts wherever the limit cut it, also within a unit; one
    last token may break it, as the end token does. Only the last 97 tokens are looked at.
    """
    tail = tokens[-_LONGEST_UNIT * _REPEATS - 1 :]
    return any(_repeats(end, unit) for end in (tail, tail[:-1]) for unit in range(1, _LONGEST_UNIT + 1))


def _repeats(tokens: Sequence[int], unit: int) -> bool:
    stretch = max(_STRETCH, _REPEATS * unit)
    return len(tokens) >= stretch and all(tokens[-i] == tokens[-i - unit] for i in range(1, stretch - unit + 1))
