"""Scores of pairs, summed log-probabilities of both responses, and the margin that was learned, in fp32.

The margin of a pair is log pi(T_w|x)/ref(T_w|x) - log pi(T_l|x)/ref(T_l|x), nats: by how much more the policy prefers
the chosen response than the base model does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from genius_lite.errors import NonFiniteError
from genius_lite.learner.batches import Packer
from genius_lite.learner.footprint import SCORED_AT_ONCE, scored_pairs
from genius_lite.learner.model import response_logps
from genius_lite.learner.packing import Groups, by_query
from genius_lite.progress import Advance
from genius_lite.records import PreferencePair, seed_of


def score(
    packer: Packer,
    groups: Groups,
    advance: Advance,
    in_fp32: bool = False,
    mark: Callable[[], Callable[[], None]] = lambda: lambda: None,
) -> np.ndarray:
    """Score pairs with the packer's policy, on request in fp32, whatever the weights are in.

    Args:
        mark: returns what puts back whatever the passes from here on change; where memory runs out they begin anew.

    Returns:
        Summed log-probabilities (chosen, rejected) in the order of the groups' own pairs, nats, float32 (P, 2).

    Raises:
        NonFiniteError: one of them is NaN or infinite.
    """
    scores_P2 = np.empty((len(groups.places_P), 2), dtype=np.float32)
    at_once = SCORED_AT_ONCE * packer.group.size
    for start in range(0, len(groups), at_once):
        some = groups[start : start + at_once]
        wave = [[*group] for group in some]
        with torch.no_grad():
            logps_2P = packer.compute(
                wave, lambda pack: response_logps(packer.policy, pack.inputs(), in_fp32).view(-1, 2), mark()
            )
        for pair, logps_2 in zip((pair for group in wave for pair in group), logps_2P.T, strict=True):
            if not torch.isfinite(logps_2).all():
                raise NonFiniteError(
                    f"query {pair.query_id}, step {pair.step}: the learner's log-probability of a response is not "
                    "finite; try learner.precision: fp32 or bf16, or a lower learner.lr"
                )
        scores_P2[some.places_P] = logps_2P.T.numpy()
        advance(len(some.places_P))
    return scores_P2


def margins(
    packer: Packer,
    pairs: Sequence[PreferencePair],
    reference_P2: np.ndarray | None,
    key: tuple[int | str, ...],
    advance: Advance,
) -> dict[tuple[str, int], float]:
    """Return (query id, step) -> margin, of some pairs that are drawn evenly from all: see `scored_pairs`.

    Args:
        reference_P2: the base model's scores in fp32, of all pairs; None has them computed.
        key: names the generator of the draw, (seed, round): the pairs are the same in every precision.
        advance: called with the passes of pairs as they are made.
    """
    rng = np.random.default_rng(seed_of(*key, "scored"))
    places = np.sort(rng.choice(len(pairs), scored_pairs(len(pairs)), replace=False))
    drawn = [pairs[place] for place in places.tolist()]
    groups = by_query(drawn)
    after_P2 = score(packer, groups, advance, in_fp32=True)
    if reference_P2 is None:
        with packer.policy.disable_adapter():
            before_P2 = score(packer, groups, advance, in_fp32=True)
    else:
        before_P2 = reference_P2[places]
    gains_P2 = after_P2.astype(np.float64) - before_P2
    found_P = (gains_P2[:, 0] - gains_P2[:, 1]).tolist()
    return {(pair.query_id, pair.step): nats for pair, nats in zip(drawn, found_P, strict=True)}


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
