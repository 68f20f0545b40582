"""How sure a figure is: intervals for an accuracy and for a difference, and a test for two models.

Problems are the unit that is drawn from a population; several samples of one problem are a cluster, not new problems.
Intervals of means are percentile bootstraps over problems (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13) rather than estimate +- 1.96 clustered standard errors (Miller, Adding Error Bars to Evals, arXiv
2411.00640): a bootstrap stays inside the range, follows the skew near its ends, and does partial credit and unequal
numbers of samples in the same way. Below some 30 problems it is a little too narrow. Intervals of differences are
Student's.

Seeds of a training are drawn too, and all of them are asked the same problems: `pooled_difference` adds their part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from genius_lite.results.evaluation import Interval, McNemar

_SAME = 1e-9  # differences of scores that are one but for rounding
_CONFIDENCE, _SEED, _RESAMPLES = 0.95, 0, 10_000  # of a bootstrap: the same figures give the same interval
_CHUNK = 2**22  # problems drawn at once, over all resamples: 32 MiB of counts


def confidence_of_each(comparisons: int) -> float:
    """Return the confidence of each of so many comparisons by which all of them together are at 95 % (Bonferroni)."""
    return 1 - 0.05 / comparisons


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """The score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927; Newcombe, Stat. Med. 17, 1998, method 3)."""
    share = successes / trials
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (share * (1 - share) + z2 / (4 * trials)) / trials) ** 0.5 / (1 + z2 / trials)
    # Rounding may leave the ends of 0/n and n/n a hair away from where they are exactly.
    low = 0.0 if successes == 0 else middle - half
    return Interval(share, low, 1.0 if successes == trials else middle + half)


def mean_accuracy(scores: Sequence[float]) -> Interval:
    """Mean score over problems, 0 to 1, each the mean of its own samples; see the module for the interval.

    For one sample a problem, right or wrong, `wilson` is the better interval.
    """
    scores_P = np.array(scores, float)
    estimate = float(scores_P.mean())
    if np.ptp(scores_P) == 0:
        return _of_a_constant(estimate, len(scores_P), (0.0, 1.0))
    return Interval(estimate, *_bootstrap(lambda drawn: scores_P[drawn].mean(axis=1), len(scores_P)))


def share_among(parts: Sequence[float], wholes: Sequence[float]) -> Interval:
    """Sum of parts / sum of wholes, with a percentile bootstrap over the problems that they are of."""
    parts_P, wholes_P = np.array(parts, float), np.array(wholes, float)
    share = float(parts_P.sum() / wholes_P.sum())
    if share in (0.0, 1.0):
        return _of_a_constant(share, int((wholes_P > 0).sum()), (0.0, 1.0))

    def shares(drawn: np.ndarray) -> np.ndarray:
        below = wholes_P[drawn].sum(axis=1)
        return parts_P[drawn].sum(axis=1)[below > 0] / below[below > 0]

    return Interval(share, *_bootstrap(shares, len(parts_P)))


def paired_difference(base: Sequence[float], tuned: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of tuned - base, of each problem's mean score, 0 to 1, over the same problems in the same order.

    Student's interval (Biometrika 6, 1908): a percentile bootstrap calls 3 to 4 of 100 unchanged models better where 20
    to 50 problems are there, this one at most 2.5.

    Raises:
        ValueError: not the same number of problems.
    """
    if len(base) != len(tuned):
        raise ValueError(f"{len(base)} and {len(tuned)} problems cannot be paired")
    return _student(np.array(tuned, float) - np.array(base, float), confidence)


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
    """
    edges = np.linspace(0, np.pi / 2, 20_001)
    below = np.concatenate([[0.0], np.cumsum(np.cos((edges[:-1] + edges[1:]) / 2) ** (freedom - 1))])
    return float(freedom**0.5 * np.tan(np.interp(confidence * below[-1], below, edges)))


def mcnemar_exact(base: Sequence[float], tuned: Sequence[float]) -> McNemar:
    """Do two models solve different shares of the same problems? One answer each, right (1) or wrong (0).

    Given the problems on which they differ, the gained ones are binomial with 1/2 (McNemar, Psychometrika 12, 1947);
    the p-value is twice the smaller tail, 1 at most (Agresti, Categorical Data Analysis).
    """
    gained = sum(b < t for b, t in zip(base, tuned, strict=True))
    lost = sum(b > t for b, t in zip(base, tuned, strict=True))
    differing, term, tail = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):  # binomial coefficients: `math.comb` would begin anew for each
        tail += term
        term = term * (differing - k) // (k + 1)
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


class PooledDifference(Interval, frozen=True):
    """A difference over the seeds of a training and over problems, and the standard error that either draw adds.

    `over_seeds` is None, and the interval over problems only, where no arm has a second seed: it then says nothing of
    what another seed would have given. Both errors hold what chance adds to one seed's answer to one problem.
    """

    over_problems: float
    over_seeds: float | None


def pooled_difference(
    base: Sequence[ArrayLike], tuned: Sequence[ArrayLike], *, paired: bool = True
) -> PooledDifference:
    """Mean of tuned - base over problems and over the seeds of a training; of several tasks the mean of their means.

    `with_seeds` adds what seeds contribute to the interval over problems, less what is in both of them: the chance in
    each single answer. In the simulations of its tests it covers the truth in 95 of 100 cases where seeds differ, and
    in up to 99 where they do not; with two seeds Satterthwaite's degrees of freedom do so in 87, and a bootstrap over
    seeds and problems in 50.

    Args:
        base, tuned: for each task its scores, -1 to 1, float (seeds, problems): both arms' problems in the same order.
        paired: the two arms' seeds are the same, in the same order: what a seed adds to both cancels. Otherwise they
            are independent draws of like spread (Student, Biometrika 6, 1908), and their numbers may differ.

    Raises:
        ValueError: the arms' problems (paired, their seeds too) do not match, which numpy may not see.
    """
    tasks = [(np.asarray(b, float), np.asarray(t, float)) for b, t in zip(base, tuned, strict=True)]
    for before, after in tasks:
        if before.shape[1] != after.shape[1] or (paired and len(before) != len(after)):
            raise ValueError(f"scores of {before.shape} and {after.shape} seeds and problems cannot be paired")
    # Either one arm of differences or two; everything below is a sum over the arms.
    arms = [[after - before for before, after in tasks]] if paired else [[-b for b, _ in tasks], [t for _, t in tasks]]
    by_problem = [np.sum([scores.mean(axis=0) for scores in of_task], axis=0) for of_task in zip(*arms, strict=True)]
    over_problems = mean_of([_student(v) for v in by_problem])
    variance = sum(_variance_of_mean(values) for values in by_problem) / len(tasks) ** 2
    interval, over_seeds = over_problems, None
    if freedom := sum(len(arm[0]) - 1 for arm in arms):
        of_seeds = [np.mean([scores.mean(axis=1) for scores in arm], axis=0) for arm in arms]
        share = sum(1 / len(arm[0]) for arm in arms) / freedom  # of squares within arms, in the variance of the result
        over_seeds = (share * sum(float(((each - each.mean()) ** 2).sum()) for each in of_seeds)) ** 0.5
        chance = share * sum(_residual(scores) for arm in arms for scores in arm) / len(tasks) ** 2
        own = max(0.0, 1 - chance / variance) if variance else 1.0
        interval = with_seeds(over_problems, over_seeds, freedom, own)
    return PooledDifference(interval.estimate, interval.low, interval.high, variance**0.5, over_seeds)


def with_seeds(over_problems: Interval, over_seeds: float, freedom: int, own: float = 1.0) -> Interval:
    """Widen a difference's interval (95 %) by what seeds add: half of one and of the other as sides of a right angle.

    Each part with the quantile of its own degrees of freedom: the sum then covers the truth at least as often as it
    says (Banerjee, Sankhya 23, 1961; both ends by themselves: Zou and Donner, Stat. Med. 27, 2008).

    Args:
        over_problems: of the mean over seeds, as if they were fixed.
        over_seeds: standard error of that mean by its seeds alone, their standard deviation / sqrt(their number).
        freedom: degrees of freedom of it, the number of seeds less the number of arms.
        own: the share of the variance over problems that is not chance of single answers, which is in `over_seeds` too.
            Where it is not known, 1: wider than need be, by a tenth or two where seeds do not differ.
    """
    seeds = student_quantile(freedom) * over_seeds
    below, above = over_problems.estimate - over_problems.low, over_problems.high - over_problems.estimate
    below, above = (max(half, math.hypot(own**0.5 * half, seeds)) for half in (below, above))
    # Two seeds have 1 degree of freedom and Student's quantile is 12.7 then, which may well reach too far.
    low, high = max(-1.0, over_problems.estimate - below), min(1.0, over_problems.estimate + above)
    return Interval(over_problems.estimate, low, high)


def _variance_of_mean(values_P: np.ndarray) -> float:
    return float(values_P.var(ddof=1)) / len(values_P) if len(values_P) > 1 else 0.0


def _student(differences_P: np.ndarray, confidence: float = 0.95) -> Interval:
    problems, estimate = len(differences_P), float(differences_P.mean())
    if np.ptp(differences_P) < _SAME:
        return _of_a_constant(estimate, problems, (-1.0, 1.0), confidence)
    half = student_quantile(problems - 1, confidence) * _variance_of_mean(differences_P) ** 0.5
    return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half))


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], problems: int) -> tuple[float, float]:
    """Percentiles of what the statistic is of problems drawn with replacement: given int (resamples, problems)."""
    rng, rows = np.random.default_rng(_SEED), max(1, _CHUNK // problems)
    found = [
        statistic(rng.integers(problems, size=(min(rows, _RESAMPLES - start), problems)))
        for start in range(0, _RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(found), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def _of_a_constant(value: float, problems: int, bounds: tuple[float, float], confidence: float = 0.95) -> Interval:
    """Where no problem differs a bootstrap has no width, although other problems might be anything within the bounds.

    Their share is the upper end of Wilson's interval for 0 of `problems`.
    """
    others, (low, high) = wilson(0, problems, confidence).high, bounds
    return Interval(value, value - others * (value - low), value + others * (high - value))


def _residual(scores_SP: np.ndarray) -> float:
    """Squares of what neither the seed nor the problem explains, for each seed's mean over its problems."""
    problems = scores_SP.shape[1]
    if problems < 2:
        return 0.0
    rest = scores_SP - scores_SP.mean(axis=0) - scores_SP.mean(axis=1, keepdims=True) + scores_SP.mean()
    return float((rest**2).sum()) / (problems - 1) / problems
