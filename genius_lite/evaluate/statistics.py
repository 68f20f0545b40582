"""How sure a figure is: intervals for an accuracy and for a difference, and a test for two models.

Problems are the unit that is drawn from a population; several samples of one problem are a cluster, not new problems.
Intervals of means are percentile bootstraps over problems (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13) rather than estimate +- 1.96 clustered standard errors (Miller, Adding Error Bars to Evals, arXiv
2411.00640): the two agree in the middle of the range, but a bootstrap stays inside it, follows the skew near its ends,
and does partial credit and unequal numbers of samples in the same way. Below some 30 problems it is a little too
narrow. Intervals of differences are Student's.

Seeds of a training are drawn too, and all of them are asked the same problems: `pooling` adds their part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from genius_lite.results.evaluation import Interval, McNemar

_SAME = 1e-9  # differences of scores that are one but for rounding
_CHUNK = 2**22  # problems drawn at once, over all resamples: 32 MiB of counts


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """The score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927; Newcombe, Stat. Med. 17, 1998, method 3).

    Raises:
        ValueError: `trials` is not positive, or `successes` is not within 0 and `trials`.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    share = successes / trials
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (share * (1 - share) + z2 / (4 * trials)) / trials) ** 0.5 / (1 + z2 / trials)
    # Rounding may leave the ends of 0/n and n/n a hair away from where they are exactly.
    low = 0.0 if successes == 0 else middle - half
    return Interval(share, low, 1.0 if successes == trials else middle + half)


def mean_accuracy(
    scores: Sequence[Sequence[float]], seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Mean score over problems, each the mean of its own samples; see the module for the interval.

    For one sample a problem, right or wrong, `wilson` is the better interval.

    Args:
        scores: for each problem its samples' scores, 0 to 1; one at least.

    Raises:
        ValueError: there is no problem, or one without samples.
    """
    return _bootstrap(_means(scores), (0.0, 1.0), seed, confidence, resamples)


def paired_difference(
    base: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]], confidence: float = 0.95
) -> Interval:
    """Mean of tuned - base over the same problems in the same order, whose difficulty cancels.

    Student's interval (Biometrika 6, 1908): differences are not skewed as accuracies are, and a percentile bootstrap
    calls 3 to 4 of 100 unchanged models better where 20 to 50 problems are there, this one at most 2.5.

    Args:
        base, tuned: for each problem its samples' scores, 0 to 1; their numbers may differ.

    Raises:
        ValueError: there is no problem, one without samples, or not the same number of problems.
    """
    if len(base) != len(tuned):
        raise ValueError(f"{len(base)} and {len(tuned)} problems cannot be paired")
    return student(_means(tuned) - _means(base), confidence)


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, the halves of whose intervals add as the sides of a right angle do."""
    estimate = sum(each.estimate for each in intervals) / len(intervals)
    below = math.hypot(*(each.estimate - each.low for each in intervals)) / len(intervals)
    above = math.hypot(*(each.high - each.estimate for each in intervals)) / len(intervals)
    return Interval(estimate, estimate - below, estimate + above)


@functools.cache
def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """What |t| of Student's distribution stays below with probability `confidence`, to 4 digits.

    With t = sqrt(freedom) tan(a) the density of a is cos(a) ** (freedom - 1), which is summed up.

    Raises:
        ValueError: `freedom` is less than 1.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    edges = np.linspace(0, np.pi / 2, 20_001)
    below = np.concatenate([[0.0], np.cumsum(np.cos((edges[:-1] + edges[1:]) / 2) ** (freedom - 1))])
    return float(freedom**0.5 * np.tan(np.interp(confidence * below[-1], below, edges)))


def mcnemar_exact(base: Sequence[float], tuned: Sequence[float]) -> McNemar:
    """Do two models solve different shares of the same problems? One answer each, right (1) or wrong (0).

    Given the problems on which they differ, the gained ones are binomial with 1/2 (McNemar, Psychometrika 12, 1947);
    the p-value is twice the smaller tail, 1 at most (Agresti, Categorical Data Analysis).

    Raises:
        ValueError: not the same number of problems, or a score that is neither 0 nor 1.
    """
    if len(base) != len(tuned):
        raise ValueError(f"{len(base)} and {len(tuned)} problems cannot be paired")
    if not {*base, *tuned} <= {0, 1}:
        raise ValueError("McNemar's test needs scores of 0 or 1; use paired_difference for partial credit")
    gained = sum(b < t for b, t in zip(base, tuned, strict=True))
    lost = sum(b > t for b, t in zip(base, tuned, strict=True))
    differing, term, tail = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):
        tail += term
        term = term * (differing - k) // (k + 1)
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def share_among(
    parts: Sequence[float], wholes: Sequence[float], seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Sum of parts / sum of wholes, with a percentile bootstrap over the problems that they are of.

    Raises:
        ValueError: not one of each for a problem, a part larger than its whole, or wholes of nothing.
    """
    parts_P, wholes_P = np.array(parts, float), np.array(wholes, float)
    if parts_P.shape != wholes_P.shape or (parts_P > wholes_P).any() or not wholes_P.sum() > 0:
        raise ValueError("each problem needs a part and a whole that holds it, and there must be a whole")
    share = float(parts_P.sum() / wholes_P.sum())
    if share in (0.0, 1.0):
        return _of_a_constant(share, int((wholes_P > 0).sum()), (0.0, 1.0), confidence)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(parts_P), size=(resamples, len(parts_P)))
    below = wholes_P[drawn].sum(axis=1)
    found = parts_P[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(share, float(low), float(high))


def _means(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean score of each problem, float64 (problems,)."""
    if not len(scores) or not all(len(samples) for samples in scores):
        raise ValueError("every problem needs a sample, and there must be a problem")
    return np.array([np.mean(samples) for samples in scores])


def variance_of_mean(values_P: np.ndarray) -> float:
    return float(values_P.var(ddof=1)) / len(values_P) if len(values_P) > 1 else 0.0


def student(differences_P: np.ndarray, confidence: float) -> Interval:
    problems, estimate = len(differences_P), float(differences_P.mean())
    if np.ptp(differences_P) < _SAME:
        return _of_a_constant(estimate, problems, (-1.0, 1.0), confidence)
    half = student_quantile(problems - 1, confidence) * variance_of_mean(differences_P) ** 0.5
    return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half))


def _bootstrap(
    values_P: np.ndarray, bounds: tuple[float, float], seed: int, confidence: float, resamples: int
) -> Interval:
    problems = len(values_P)
    estimate = float(values_P.mean())
    if np.ptp(values_P) == 0:
        return _of_a_constant(estimate, problems, bounds, confidence)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // problems)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(problems, size=(min(rows, resamples - start), problems))
        means.append(values_P[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _of_a_constant(value: float, problems: int, bounds: tuple[float, float], confidence: float) -> Interval:
    """Where no problem differs a bootstrap has no width, although others might: as many as 0 of `problems` allow.

    That share is the upper end of Wilson's interval for 0; those problems could then be anything within the bounds.
    """
    others = wilson(0, problems, confidence).high
    low, high = bounds
    return Interval(value, value - others * (value - low), value + others * (high - value))
