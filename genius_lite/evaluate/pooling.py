"""How sure a difference is over the seeds of a training and over problems, both of which are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from genius_lite.evaluate.statistics import mean_of, student, student_quantile, variance_of_mean
from genius_lite.results.evaluation import Interval


class PooledDifference(Interval, frozen=True):
    """A difference over the seeds of a training and over problems, and the standard error that either draw adds.

    `over_seeds` is None, and the interval over problems only, where no arm has a second seed: it then says nothing of
    what another seed would have given. Both errors hold what chance adds to one seed's answer to one problem.
    """

    over_problems: float
    over_seeds: float | None


def pooled_difference(
    base: Sequence[ArrayLike],
    tuned: Sequence[ArrayLike],
    *,
    paired: bool = True,
    confidence: float = 0.95,
) -> PooledDifference:
    """Mean of tuned - base over problems and over the seeds of a training; of several tasks the mean of their means.

    `with_seeds` adds what seeds contribute to the interval over problems, less what is in both of them: the chance in
    each single answer. The result is never narrower than over problems only. In the simulations of its tests it covers
    the truth in 95 of 100 cases where seeds differ, and in up to 99 where they do not. Satterthwaite's degrees of
    freedom for the sum of all parts do so in 87 with two seeds, and a bootstrap over seeds and problems in 50 with two
    and 75 with three where seeds are all that differs: it ends at the worst and the best of them.

    Args:
        base, tuned: for each task its scores, -1 to 1, float (seeds, problems): both arms' problems in the same order.
        paired: the two arms' seeds are the same, in the same order: what a seed adds to both cancels. Otherwise they
            are independent draws of like spread (Student, Biometrika 6, 1908), and their numbers may differ.

    Raises:
        ValueError: there is no task, seed or problem, or the arms' problems (paired, their seeds too) do not match.
    """
    tasks = [(_scores(before), _scores(after)) for before, after in zip(base, tuned, strict=True)]
    if not tasks:
        raise ValueError("there must be a task")
    for before, after in tasks:
        if before.shape[1] != after.shape[1] or (paired and len(before) != len(after)):
            raise ValueError(f"scores of {before.shape} and {after.shape} seeds and problems cannot be paired")
    # Either one arm of differences or two; everything below is a sum over the arms.
    arms = [[after - before for before, after in tasks]] if paired else [[-b for b, _ in tasks], [t for _, t in tasks]]
    by_problem = [np.sum([scores.mean(axis=0) for scores in of_task], axis=0) for of_task in zip(*arms, strict=True)]
    over_problems = mean_of([student(v, confidence) for v in by_problem])
    variance = sum(variance_of_mean(values) for values in by_problem) / len(tasks) ** 2
    interval, over_seeds = over_problems, None
    if freedom := sum(len(arm[0]) - 1 for arm in arms):
        of_seeds = [np.mean([scores.mean(axis=1) for scores in arm], axis=0) for arm in arms]
        share = sum(1 / len(arm[0]) for arm in arms) / freedom  # of squares within arms, in the variance of the result
        over_seeds = (share * sum(float(((each - each.mean()) ** 2).sum()) for each in of_seeds)) ** 0.5
        chance = share * sum(_residual(scores) for arm in arms for scores in arm) / len(tasks) ** 2
        own = max(0.0, 1 - chance / variance) if variance else 1.0
        interval = with_seeds(over_problems, over_seeds, freedom, own, confidence)
    return PooledDifference(interval.estimate, interval.low, interval.high, variance**0.5, over_seeds)


def with_seeds(
    over_problems: Interval, over_seeds: float, freedom: int, own: float = 1.0, confidence: float = 0.95
) -> Interval:
    """Widens a difference's interval by what seeds add: half of one and of the other, as the sides of a right angle.

    Half of the seeds' own interval is Student's quantile times their standard error. Each part with the quantile of its
    own degrees of freedom: the sum then covers the truth as often as it says or more often, whichever of them is the
    larger (Banerjee, Sankhya 23, 1961; both ends by themselves: Zou and Donner, Stat. Med. 27, 2008).

    Args:
        over_problems: of the mean over seeds, as if they were fixed.
        over_seeds: standard error of that mean by its seeds alone, their standard deviation / sqrt(their number).
        freedom: degrees of freedom of it, the number of seeds less the number of arms.
        own: the share of the variance over problems that is not chance of single answers, which is in `over_seeds` too.
            Where it is not known, 1: wider than need be, by a tenth or two where seeds do not differ.
    """
    seeds = student_quantile(freedom, confidence) * over_seeds
    below, above = over_problems.estimate - over_problems.low, over_problems.high - over_problems.estimate
    below, above = (max(half, math.hypot(own**0.5 * half, seeds)) for half in (below, above))
    # Two seeds have 1 degree of freedom and Student's quantile is 12.7 then, which may well reach too far.
    low, high = max(-1.0, over_problems.estimate - below), min(1.0, over_problems.estimate + above)
    return Interval(over_problems.estimate, low, high)


def _scores(scores: ArrayLike) -> np.ndarray:
    """Scores of a task, float64 (seeds, problems)."""
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"scores of shape {found.shape} are not those of seeds and problems")
    return found


def _residual(scores_SP: np.ndarray) -> float:
    """Squares of what neither the seed nor the problem explains, for each seed's mean over its problems."""
    problems = scores_SP.shape[1]
    if problems < 2:
        return 0.0
    rest = scores_SP - scores_SP.mean(axis=0) - scores_SP.mean(axis=1, keepdims=True) + scores_SP.mean()
    return float((rest**2).sum()) / (problems - 1) / problems
