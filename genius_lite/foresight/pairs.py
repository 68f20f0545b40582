"""Preference pairs from a rollout, one per step at most (Genius, arXiv 2504.08672, Eq. 5)."""

from __future__ import annotations

import math

import numpy as np

from genius_lite.errors import NonFiniteError
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.recipe import Pairs
from genius_lite.records import PreferencePair, Rollout, Step, seed_of


def preference_pairs(rollout: Rollout, cfg: Pairs, tau: float, key: tuple[int | str, ...]) -> list[PreferencePair]:
    """The quintuples (x, T_w, A_w, T_l, A_l) of a rollout.

    The chosen response has the highest f of its step. The rejected one is drawn from F without it, or uniformly (as
    the released code does). With `choose: random` they are two different responses of the step in either order, all
    equally likely, each with its own advantage. This is the control: what is learned from such pairs owes nothing to
    f. Equal responses never make a pair, so a step may give none.

    Args:
        tau: temperature of F, nats per token.
        key: names the generator of these draws: (seed, round, query id).

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    rng = np.random.default_rng(seed_of(*key, "pairs"))
    pairs = []
    for step in (s for s in rollout.steps if s.foreseen):
        if not all(math.isfinite(c.value) and math.isfinite(c.advantage) for c in step.candidates):
            raise NonFiniteError(f"query {rollout.query.id}, step {step.index}: a candidate's value is not finite")
        responses = [rollout.response(step.index, i) for i in range(len(step.candidates))]
        if cfg.choose == "random":
            two = _any_two(responses, rng)
        else:
            two = _best_and_another(step, responses, tau if cfg.negatives == "foresight" else None, rng)
        if two:
            pairs.append(_pair(rollout, step, responses, *two))
    return pairs


def _best_and_another(
    step: Step, responses: list[list[int]], tau: float | None, rng: np.random.Generator
) -> tuple[int, int] | None:
    """The candidate of highest f, and one drawn from F (`tau` None: uniformly) among those that respond otherwise."""
    values = [c.value for c in step.candidates]
    best = int(np.argmax(values))
    others = [i for i, response in enumerate(responses) if response != responses[best]]
    if not others:
        return None
    p = None if tau is None else foresight_distribution([values[i] for i in others], tau)
    return best, others[int(rng.choice(len(others), p=p))]


def _any_two(responses: list[list[int]], rng: np.random.Generator) -> tuple[int, int] | None:
    """Two candidates that respond differently, in random order; of equal responses the first one stands for all."""
    distinct = [i for i, response in enumerate(responses) if response not in responses[:i]]
    if len(distinct) < 2:
        return None
    chosen, rejected = rng.permutation(distinct)[:2].tolist()
    return chosen, rejected


def _pair(rollout: Rollout, step: Step, responses: list[list[int]], chosen: int, rejected: int) -> PreferencePair:
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
    )
