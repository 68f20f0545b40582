"""Foresight re-sampling: the distribution F of Eq. 2, and draws from it (Eq. 3, Eq. 5).

Beside it the greedy choice, the paper's ablation of re-sampling.
"""

from __future__ import annotations

import numpy as np


def foresight_distribution(values: list[float], tau: float) -> np.ndarray:
    """Return F = softmax(f / tau), Eq. 2.

    Args:
        values: f of each candidate, nats per token.
        tau: temperature, nats per token; towards 0 it is greedy, towards infinity uniform.

    Returns:
        Probabilities, float64, in the order of `values`.
    """
    scaled = np.asarray(values, dtype=np.float64) / tau
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def draw_order(values: list[float], tau: float, rng: np.random.Generator) -> list[int]:
    """Return all indices as they are drawn from F one after the other, without replacement.

    The Gumbel-top-k trick: f / tau + Gumbel noise in descending order is such a draw (Kool, van Hoof and Welling,
    arXiv 1903.06059). It stays exact where F underflows to 0; an infinite tau draws uniformly.
    """
    keys = np.asarray(values, dtype=np.float64) / tau + rng.gumbel(size=len(values))
    return np.argsort(-keys, kind="stable").tolist()


def draw_without_replacement(values: list[float], tau: float, n: int, rng: np.random.Generator) -> list[int]:
    """Draw up to `n` distinct indices from F one after the other, Eq. 3; return them in ascending order."""
    return sorted(draw_order(values, tau, rng)[:n])


def take_highest(values: list[float], n: int) -> list[int]:
    """Return the up to `n` indices of highest value, of equal ones the first, in ascending order."""
    return sorted(np.argsort(-np.asarray(values, dtype=np.float64), kind="stable")[:n].tolist())
