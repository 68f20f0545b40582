"""What was learned: by how much more the policy prefers the chosen responses than the base model does, in fp32.

The margin of a pair is log pi(T_w|x)/ref(T_w|x) - log pi(T_l|x)/ref(T_l|x), nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from genius_lite.learner.batches import Packer, score
from genius_lite.learner.footprint import SCORED_PAIRS
from genius_lite.learner.packing import by_query
from genius_lite.records import PreferencePair, seed_of

Scores = dict[tuple[str, int], list[float]]
"""(query id, step) -> summed log-probabilities (chosen, rejected), nats."""


def margins(
    policy: Any,
    pairs: list[PreferencePair],
    reference: Scores | None,
    packer: Packer,
    key: tuple[int | str, ...],
    advance: Callable[[int], None],
) -> dict[tuple[str, int], float]:
    """Return (query id, step) -> margin, of pairs drawn evenly from all, `SCORED_PAIRS` at most.

    Args:
        reference: the base model's scores in fp32, of all pairs; None has them computed.
        key: names the generator of the draw, (seed, round): the pairs are the same in every precision.
        advance: called with the passes of pairs as they are made.
    """
    rng = np.random.default_rng(seed_of(*key, "scored"))
    places = rng.choice(len(pairs), min(len(pairs), SCORED_PAIRS), replace=False)
    groups = by_query([pairs[i] for i in sorted(places)])
    after = score(policy, groups, packer, advance, in_fp32=True)
    if reference is None:
        with policy.disable_adapter():
            reference = score(policy, groups, packer, advance, in_fp32=True)
    return {pair: _gap(after[pair]) - _gap(reference[pair]) for pair in after}


def clustered_error(found: dict[tuple[str, int], float]) -> float | None:
    """Estimate the mean margin's standard error, nats: a question's deviations are summed before they are squared.

    (Liang and Zeger, 1986, of a mean: sqrt(G / (G - 1) * sum over G questions of their summed deviations squared) / n.)

    Returns:
        None where all pairs are of one question, of which nothing can be said.
    """
    mean = float(np.mean(list(found.values())))
    sums: dict[str, float] = {}
    for (question, _), nats in found.items():
        sums[question] = sums.get(question, 0.0) + nats - mean
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(total**2 for total in sums.values())) / len(found)


def _gap(logps: list[float]) -> float:
    return logps[0] - logps[1]
