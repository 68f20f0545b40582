"""Foresight re-sampling: the distribution F of Eq. 2, draws from it (Eq. 3, Eq. 5), and who cannot be drawn.

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


def drop_bound(values: list[float], tau: float, probability: float, draws: int) -> float:
    """Return the f below which a further candidate has less than `probability` in each of `draws` draws from F.

    Candidates are drawn without replacement, so a later draw lacks some of the likeliest: the bound counts only what
    is left without the `draws - 1` best, and of that only what is better than the further candidate. Therefore it
    never falls while values arrive, and candidates under it do not move it: who is dropped does not depend on when.

    Returns:
        Nats per token; minus infinity while nothing can be excluded.
    """
    best = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    rest = best[draws - 1 :]
    if not len(rest) or not probability:
        return -np.inf
    log_mass = np.logaddexp.accumulate(rest / tau)
    below = tau * (log_mass + np.log(probability) - np.log1p(-probability))
    return float(np.minimum(rest, below).max())
