"""Which preference pairs are learned from. A filter never changes a pair, and what it leaves out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from genius_lite.foresight.repetition import loops
from genius_lite.recipe import Pairs
from genius_lite.records import PreferencePair, Rollout

_FILTERS = ("gap", "looping", "truncated", "length", "agreement")
_Answers = dict[tuple[int, ...], str | None]  # of each distinct response of a query


def filter_pairs(
    pairs: list[PreferencePair], rollouts: Sequence[Rollout], cfg: Pairs, answer: Callable[[list[int]], str | None]
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that stay, and how many each filter left out; a pair is counted by the first that refuses it.

    - gap: f of the chosen response exceeds that of the rejected one by less than `min_gap`, nats per token.
    - looping: the chosen, or either, response ends in a repetition.
    - truncated: the chosen, or either, response was cut off at a token limit.
    - length: one response has more than `max_length_ratio` times the tokens of the other.
    - agreement: a vote of the query's distinct responses, those of all candidates of all foreseen steps. Each that
      states a final answer has one vote. The chosen response's answer needs at least this share of the votes, and the
      rejected one must state another answer. Where no response states one nothing can be judged, and the pair stays.
      The vote is self-consistency (Wang et al., arXiv 2203.11171), here over responses that share their first steps.

    Args:
        rollouts: those that the pairs were made from.
        answer: the final answer that the tokens of a response state, or None; equal answers are equal strings. It is
            asked once for each distinct response, and only where `agreement` has to decide.

    Returns:
        The pairs in their order; and the counts, in the order above, with every filter in it.
    """
    place = {rollout.query.id: n for n, rollout in enumerate(rollouts)} if cfg.agreement is not None else {}

    @lru_cache(maxsize=16)  # the pairs of a query stand together
    def answers(query_id: str) -> _Answers:
        return {response: answer(list(response)) for response in _responses(rollouts[place[query_id]])}

    refusals = [_refused_by(pair, cfg, answers) for pair in pairs]
    counts = Counter(refusals)
    kept = [pair for pair, refusal in zip(pairs, refusals, strict=True) if refusal is None]
    return kept, {name: counts[name] for name in _FILTERS}


def _refused_by(pair: PreferencePair, cfg: Pairs, answers: Callable[[str], _Answers]) -> str | None:
    """The first filter that refuses the pair, in the order of `_FILTERS`; the costly ones look only if asked for."""
    # Randomly chosen pairs may have a negative gap: without a least gap it is none of this filter's business.
    if cfg.min_gap and pair.chosen_value - pair.rejected_value < cfg.min_gap:
        return "gap"
    if any(loops(tokens) for tokens in (pair.chosen_tokens, pair.rejected_tokens)[: _judged(cfg.looping)]):
        return "looping"
    if not all((pair.chosen_ended, pair.rejected_ended)[: _judged(cfg.truncated)]):
        return "truncated"
    shorter, longer = sorted((len(pair.chosen_tokens), len(pair.rejected_tokens)))
    if cfg.max_length_ratio is not None and longer / shorter > cfg.max_length_ratio:
        return "length"
    if cfg.agreement is not None and not _agreed(pair, cfg.agreement, answers(pair.query_id)):
        return "agreement"
    return None


def _judged(setting: str) -> int:
    """How many of (chosen, rejected) a filter looks at."""
    return {"keep": 0, "chosen": 1, "either": 2}[setting]


def _responses(rollout: Rollout) -> list[tuple[int, ...]]:
    """The distinct responses of a rollout, in order; where no future was simulated they are incomplete, so no part."""
    return list(
        dict.fromkeys(
            tuple(rollout.response(step.index, i))
            for step in rollout.steps
            if step.foreseen
            for i in range(len(step.candidates))
        )
    )


def _agreed(pair: PreferencePair, share: float, answers: _Answers) -> bool:
    """Whether the vote is for the chosen response's answer, and the rejected one's is another."""
    votes = Counter(stated for stated in answers.values() if stated is not None)
    if not votes:
        return True
    chosen, rejected = answers[tuple(pair.chosen_tokens)], answers[tuple(pair.rejected_tokens)]
    if chosen is None or rejected in (None, chosen):
        return False
    return votes[chosen] / votes.total() >= share
