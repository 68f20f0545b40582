"""Preference pairs from a rollout, one per step at most (Genius, arXiv 2504.08672, Eq. 5)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from genius_lite.foresight.resample import foresight_distribution
from genius_lite.records import PreferencePair, Rollout, seed_of


def preference_pairs(
    rollout: Rollout, tau: float, negatives: Literal["foresight", "uniform"], key: tuple[int | str, ...]
) -> list[PreferencePair]:
    """The quintuples (x, T_w, A_w, T_l, A_l) of a rollout.

    The chosen response has the highest f of its step. The rejected one is drawn from F without it, or
    uniformly (as the released code does). Equal responses never make a pair, so a step may give none.
    """
    rng = np.random.default_rng(seed_of(*key, "pairs"))
    pairs = []
    for step in (s for s in rollout.steps if s.foreseen):
        responses = [rollout.response(step.index, i) for i in range(len(step.candidates))]
        values = [c.value for c in step.candidates]
        best = int(np.argmax(values))
        others = [i for i, response in enumerate(responses) if response != responses[best]]
        if not others:
            continue
        p = foresight_distribution([values[i] for i in others], tau) if negatives == "foresight" else None
        worse = others[int(rng.choice(len(others), p=p))]
        pairs.append(
            PreferencePair(
                query_id=rollout.query.id,
                step=step.index,
                prompt_tokens=rollout.query.tokens,
                chosen_tokens=responses[best],
                rejected_tokens=responses[worse],
                chosen_advantage=step.candidates[best].advantage,
                rejected_advantage=step.candidates[worse].advantage,
            )
        )
    return pairs


def hold_back(
    pairs: list[PreferencePair], share: float, key: tuple[int | str, ...]
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The pairs to learn from, and those of about `share` of the queries that are kept aside.

    One query at least is kept aside where there are ten, and never all of them.
    """
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    count = min(max(round(share * len(queries)), 1 if share and len(queries) >= 10 else 0), len(queries) - 1)
    aside = set(sorted(queries, key=lambda query: seed_of(*key, "holdout", query))[:count])
    return [p for p in pairs if p.query_id not in aside], [p for p in pairs if p.query_id in aside]
