"""Preference pairs from rollouts, one per step at most (Genius, arXiv 2504.08672, Eq. 5)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from genius_lite.errors import NonFiniteError
from genius_lite.foresight.filters import FILTERS, Answer, Vote, refusal, unfit
from genius_lite.foresight.resample import draw_order
from genius_lite.recipe import Pairs, Recipe
from genius_lite.records import PreferencePair, Rollout, Step, seed_of
from genius_lite.text import amount

_KEYS = {"gap": "min_gap", "length": "max_length_ratio"}  # of a filter, where it has not its name
_THOUGHTS = "if the model thinks, give it foresight.thought_tokens, or switch thoughts off in queries.template"
_AGREEING = 2  # votes, at least: a single response agrees with nobody


def draw_pairs(
    rollouts: Iterable[Rollout],
    cfg: Pairs,
    tau: float,
    key: tuple[int | str, ...],
    answer: Answer,
    left_out: Counter[str],
) -> Iterator[PreferencePair]:
    """Choose the quintuples (x, T_w, A_w, T_l, A_l) of some rollouts, in their order.

    - `choose: best`: the chosen response has the highest f of its step. The rejected one is drawn from F without it,
      or uniformly (as the released code does). Where a filter refuses the chosen response itself, the next best one is
      chosen, and the rejected one is drawn from those of no higher f than it has.
    - `choose: agreed`: the chosen response is of the step's most frequent final answer in its query's vote, and among
      those of the highest f that no filter refuses; the rejected one is drawn in the same way from those that state a
      rarer answer (preferring by self-consistency is Prasad et al.'s, arXiv 2411.04109). An answer that is given once
      is no agreement. With `weigh: votes` the pair's weight is by which share of the votes the one leads the other.
    - `choose: random`: two different responses of the step in either order, all equally likely, each with its own
      advantage. This is the control: what is learned from such pairs owes nothing to f.

    Equal responses never make a pair, so a step may give none. Where a filter refuses a pair another one is drawn.

    Args:
        tau: temperature of F, nats per token.
        key: names the generator of these draws: (seed, round).
        answer: is asked only where the vote has to decide.
        left_out: gets for each of `FILTERS` the steps that it left without a pair, a step being counted by the filter
            that refused what was drawn first. `agreement` counts the steps too that `choose: agreed` finds undecided.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    left_out.update(dict.fromkeys(FILTERS, 0))
    for rollout in rollouts:
        rng = np.random.default_rng(seed_of(*key, rollout.query.id, "pairs"))
        vote = Vote(rollout, answer)
        for step in (s for s in rollout.steps if s.foreseen):
            if not all(math.isfinite(c.value) and math.isfinite(c.advantage) for c in step.candidates):
                raise NonFiniteError(f"query {rollout.query.id}, step {step.index}: a candidate's value is not finite")
            responses = [rollout.response(step.index, i) for i in range(len(step.candidates))]
            refusals = []
            for two in _drawn(step, responses, cfg, tau, vote, rng):
                lead = vote.lead(*(responses[i] for i in two)) if cfg.weigh == "votes" else 1.0
                pair = _pair(rollout, step, responses, *two, lead)
                if not (refused := refusal(pair, cfg, vote)):
                    yield pair
                    break
                refusals.append(refused)
            else:
                undecided = ["agreement"] if cfg.choose == "agreed" else []  # the vote sets no two responses apart
                left_out.update(refusals[:1] or undecided)


def why_none(recipe: Recipe, left_out: Mapping[str, int], rollouts: Iterable[Rollout]) -> str:
    """Say why there is no pair at all, and what helps."""
    cfg = recipe.pairs
    if not any(step.foreseen for rollout in rollouts for step in rollout.steps):
        return "every step's candidates agree, and none was foreseen; raise foresight.skip_agreeing, or leave it out"
    counts = {name: count for name, count in left_out.items() if count}
    counted = ", ".join(f"{name} {count}" for name, count in counts.items())
    if not counts:
        return "no query gave two different responses; raise foresight.temperature or candidates"
    if [*counts] == ["agreement"] and cfg.choose == "agreed" and cfg.agreement is None:
        return (
            f"none of {amount(counts['agreement'], 'votes')} had a winner and a rarer answer; more responses that end "
            f"and state an answer can have (foresight.candidates, max_tokens, queries.answers); {_THOUGHTS}"
        )
    looser = ", ".join(f"pairs.{_KEYS.get(name, name)}" for name in counts)
    limit = "future_tokens" if recipe.foresight.future_tokens else f"max_tokens; {_THOUGHTS}"
    longer = f", or foresight.{limit}" if "truncated" in counts else ""
    return f"the filters of `pairs` left none ({counted}); loosen {looser}{longer}"


def _drawn(
    step: Step, responses: list[list[int]], cfg: Pairs, tau: float, vote: Vote, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Yield chosen and rejected candidates: those drawn first, then those drawn if all before were impossible."""
    values = [c.value for c in step.candidates]
    if cfg.choose == "random":
        # Of equal responses the first one stands for all.
        distinct = [*{tuple(response): i for i, response in reversed([*enumerate(responses)])}.values()][::-1]
        for place in map(int, rng.permutation(len(distinct) * (len(distinct) - 1))):
            first, second = divmod(place, len(distinct) - 1)
            yield distinct[first], distinct[second + (second >= first)]
        return
    ranked = sorted(range(len(values)), key=lambda i: -values[i])
    votes = [vote.votes(response) for response in responses] if cfg.choose == "agreed" else []
    if votes:
        ranked = [i for i in ranked if votes[i] == max(votes) >= _AGREEING]
    for chosen in ranked:
        if votes:
            others = [i for i, count in enumerate(votes) if 0 < count < votes[chosen]]
        else:
            others = [i for i, f in enumerate(values) if f <= values[chosen] and responses[i] != responses[chosen]]
        order = draw_order([values[i] for i in others], tau if cfg.negatives == "foresight" else math.inf, rng)
        yield from ((chosen, others[at]) for at in order)
        if not unfit(responses[chosen], step.candidates[chosen].last.finish == "end", cfg, vote):
            return


def _pair(
    rollout: Rollout, step: Step, responses: list[list[int]], chosen: int, rejected: int, lead: float
) -> PreferencePair:
    better, worse = step.candidates[chosen], step.candidates[rejected]
    return PreferencePair(
        query_id=rollout.query.id,
        step=step.index,
        prompt_tokens=rollout.query.tokens,
        chosen_tokens=responses[chosen],
        rejected_tokens=responses[rejected],
        chosen_advantage=better.advantage,
        rejected_advantage=worse.advantage,
        chosen_value=better.value,
        rejected_value=worse.value,
        chosen_ended=better.last.finish == "end",
        rejected_ended=worse.last.finish == "end",
        lead=lead,
    )
