from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genius_lite.evaluate import statistics
from genius_lite.evaluate.statistics import (
    mcnemar_exact,
    mean_accuracy,
    mean_of,
    paired_difference,
    pooled_difference,
    student_quantile,
    wilson,
    with_seeds,
)
from genius_lite.results.evaluation import Interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Stat. Med. 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert interval.estimate == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_by_hand():
    # z = 1, 2 of 4: middle (1/2 + 1/8) / (5/4) = 1/2, half the width sqrt(1/16 + 1/64) / (5/4) = sqrt(5) / 10.
    interval = wilson(2, 4, confidence=0.6826894921)
    assert (interval.low, interval.high) == pytest.approx((0.5 - 5**0.5 / 10, 0.5 + 5**0.5 / 10))


@given(st.integers(1, 3000), st.data())
def test_wilson_holds_its_share_and_mirrors(trials, data):
    successes = data.draw(st.integers(0, trials))
    interval, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (5, 0, 2 / 32),
        (5, 1, 2 * (1 + 6) / 64),
        (1, 5, 2 * (1 + 6) / 64),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    base = [0] * gained + [1] * lost + [1, 1, 0]
    tuned = [1] * gained + [0] * lost + [1, 1, 0]
    result = mcnemar_exact(base, tuned)
    assert (result.gained, result.lost) == (gained, lost)
    assert result.p_value == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_problems():
    # 10,000 differ, 5,200 of them gained: z = (400 - 1) / sqrt(10000) = 3.99, two-sided 6.6e-5.
    result = mcnemar_exact([0] * 5200 + [1] * 4800, [1] * 5200 + [0] * 4800)
    assert result.p_value == pytest.approx(6.6e-5, rel=0.02)


def test_mean_accuracy_weighs_problems_alike():
    interval = mean_accuracy([1, 0, 0.25])
    assert interval.estimate == pytest.approx((1 + 0 + 0.25) / 3)
    assert interval.low == 0
    assert interval.high == 1


def test_bootstrap_of_two_problems_by_hand(monkeypatch):
    # Of two problems, 0 and 1, resamples have the means 0, 1/2 and 1 with 1/4, 1/2 and 1/4.
    monkeypatch.setattr(statistics, "_CONFIDENCE", 0.6)
    wide = mean_accuracy([0, 1])
    monkeypatch.setattr(statistics, "_CONFIDENCE", 0.4)
    narrow = mean_accuracy([0, 1])
    assert (wide.low, wide.high, narrow.low, narrow.high) == (0, 1, 0.5, 0.5)


def test_the_bootstrap_agrees_with_the_clustered_standard_error():
    rng = np.random.default_rng(3)
    scores = (rng.random((400, 8)) < rng.random((400, 1))).astype(float)
    half = 1.96 * scores.mean(axis=1).std(ddof=1) / 20
    interval = mean_accuracy(scores.mean(axis=1))
    assert (interval.low, interval.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.003)
    # Samples of one problem are no new problems: taken for 3,200 trials, the interval is too narrow.
    naive = wilson(float(scores.sum()), scores.size)
    assert interval.high - interval.low > 1.4 * (naive.high - naive.low)


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch):
    """300 samples of 60 problems: 95 % +- 3 binomial standard errors (1.3 points), less the known narrowness."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 1000)
    rng = np.random.default_rng(11)
    covered, paired = 0, 0
    for _ in range(300):
        skill = rng.beta(1, 2, size=(60, 1))
        base = rng.random((60, 4)) < skill
        tuned = rng.random((60, 4)) < skill + 0.1 * (1 - skill)
        interval = mean_accuracy(base.mean(axis=1))
        covered += interval.low <= 1 / 3 <= interval.high
        difference = paired_difference(base.mean(axis=1), tuned.mean(axis=1))
        paired += difference.low <= 0.1 * (1 - 1 / 3) <= difference.high
    assert 0.90 <= covered / 300 <= 0.985
    assert 0.90 <= paired / 300 <= 0.985


@pytest.mark.parametrize(
    ("freedom", "confidence", "quantile"),
    # Two-sided quantiles of Student's t, as tabulated; of a normal distribution at last.
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (4, 0.95, 2.7764),
        (4, 0.99, 4.6041),
        (30, 0.95, 2.0423),
        (10**5, 0.95, 1.96),
    ],
)
def test_student_as_tabulated(freedom, confidence, quantile):
    assert student_quantile(freedom, confidence) == pytest.approx(quantile, abs=1e-4)


LEARNED = 0.5  # the share of what the base model gets wrong that the tuned one gets right, on the average
NOTHING, PROBLEMS, SEEDS = (0, 0, 0), (0, 0.2, 0.2), (0.15, 0.1, 0.1)


def simulated(rng, seeds, accuracy, spreads, problems=60, samples=4, arms=2):
    """Scores of arms on the same problems, (seeds, problems) each: a base model, and others that gain LEARNED.

    That share differs by `spreads`: from seed to seed (a standard deviation), from problem to problem, and for each
    seed and problem by itself (evenly, as far as that on either side). The true gain is LEARNED * (1 - accuracy): what
    is cut off at no and all problems is as much.
    """
    of_seeds, of_problems, of_both = spreads
    skill = rng.beta(2 * accuracy, 2 * (1 - accuracy), size=problems)
    found = [rng.binomial(samples, skill, size=(seeds, problems)) / samples]
    for _ in range(arms - 1):
        share = LEARNED + of_seeds * rng.standard_normal((seeds, 1))
        share = share + rng.uniform(-of_problems, of_problems, problems)
        share = np.clip(share + rng.uniform(-of_both, of_both, (seeds, problems)), 0, 1)
        found.append(rng.binomial(samples, skill + (1 - skill) * share) / samples)
    return found


@pytest.mark.parametrize("spreads", [NOTHING, PROBLEMS, SEEDS], ids=["nothing", "problems", "seeds"])
@pytest.mark.parametrize("accuracy", [0.1, 0.5])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_pooled_intervals_cover_the_truth(seeds, accuracy, spreads):
    """Of 400 studies: 95 % less two binomial standard errors (1.1 points)."""
    rng = np.random.default_rng(round(1000 * seeds + 10 * accuracy))
    truth, covered, over_problems = LEARNED * (1 - accuracy), 0, 0
    for _ in range(400):
        base, tuned = simulated(rng, seeds, accuracy, spreads)
        pooled = pooled_difference([base], [tuned])
        covered += pooled.low <= truth <= pooled.high
        if spreads == SEEDS:
            fixed = paired_difference(base.mean(axis=0), tuned.mean(axis=0))
            over_problems += fixed.low <= truth <= fixed.high
    assert covered / 400 >= 0.93
    assert over_problems / 400 < 0.85, "an interval over problems would do as well: the simulation has nothing to find"


def test_pooled_intervals_are_no_wider_than_they_must():
    """Of five seeds that do not differ: half as wide again at most as if that were known."""
    rng = np.random.default_rng(6)
    found = [pooled_difference(*([scores] for scores in simulated(rng, 5, 0.3, PROBLEMS))) for _ in range(200)]
    known = 2 * 1.96 * np.std([pooled.estimate for pooled in found])
    assert np.mean([pooled.high - pooled.low for pooled in found]) < 1.5 * known


@pytest.mark.parametrize("seeds", [(2, 2), (3, 2), (3, 1)])
def test_independent_seeds_cover_the_truth(seeds):
    """Two arms that gain the same on the whole, their seeds drawn separately: of 400 studies, as above."""
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        _, *arms = simulated(rng, 3, 0.3, SEEDS, arms=3)
        one, other = (scores[:n] for scores, n in zip(arms, seeds, strict=True))
        pooled = pooled_difference([one], [other], paired=False)
        covered += pooled.low <= 0 <= pooled.high
    assert covered / 400 >= 0.93


def test_the_mean_of_tasks_covers_the_truth():
    """Two tasks of unequal size, on which a seed is better or worse at once: of 400 studies, as above."""
    rng = np.random.default_rng(8)
    truth, covered = LEARNED * (0.9 + 0.5) / 2, 0
    for _ in range(400):
        of_seed = rng.normal(0, 0.05, (3, 1))
        tasks = [simulated(rng, 3, a, PROBLEMS, problems=n) for a, n in ((0.1, 40), (0.5, 80))]
        base, tuned = zip(*((b, t + of_seed) for b, t in tasks), strict=True)
        pooled = pooled_difference(base, tuned)
        covered += pooled.low <= truth <= pooled.high
    assert covered / 400 >= 0.93


def test_both_parts_of_the_error_by_hand():
    base = np.zeros((2, 4))
    tuned = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    pooled = pooled_difference([base], [tuned])
    assert pooled.estimate == 3 / 8
    # Means of problems 1, 1/2, 0, 0, squares around their mean 11/16; of seeds 1/2 and 1/4, squares 1/32.
    assert pooled.over_problems == pytest.approx((11 / 16 / 3 / 4) ** 0.5)
    assert pooled.over_seeds == pytest.approx((1 / 32 / 2) ** 0.5)
    # 12.7 times an eighth leaves the range of a difference.
    assert (pooled.low, pooled.high) == (-1, 1)


def test_two_tasks_weigh_alike_and_their_own_spreads_do_not_mix():
    rng = np.random.default_rng(2)
    tasks = [simulated(rng, 3, 0.3, PROBLEMS, problems=n) for n in (20, 80)]
    alone = [pooled_difference([base], [tuned]) for base, tuned in tasks]
    both = pooled_difference([b for b, _ in tasks], [t for _, t in tasks])
    assert both.estimate == pytest.approx((alone[0].estimate + alone[1].estimate) / 2)
    assert both.over_problems == pytest.approx(np.hypot(alone[0].over_problems, alone[1].over_problems) / 2)
    far = [(base, tuned + shift) for (base, tuned), shift in zip(tasks, (0, 0.5), strict=True)]
    apart = pooled_difference([b for b, _ in far], [t for _, t in far])
    assert apart.over_problems == pytest.approx(both.over_problems)


def test_one_seed_is_over_problems_only():
    base, tuned = simulated(np.random.default_rng(1), 1, 0.3, NOTHING)
    pooled = pooled_difference([base], [tuned])
    alone = paired_difference(base[0], tuned[0])
    assert (pooled.estimate, pooled.low, pooled.high) == pytest.approx((alone.estimate, alone.low, alone.high))
    assert pooled.over_seeds is None


def test_differences_that_are_one_but_for_rounding_prove_nothing():
    found = paired_difference([1, 2 / 3], [2 / 3, 1 / 3])
    same = paired_difference([1, 0.75], [0.75, 0.5])
    assert found.high > 0 and same.high > 0


def test_seeds_that_happen_to_agree_do_not_narrow_it():
    problems = np.random.default_rng(5).integers(0, 2, (1, 40)).astype(float)
    base, tuned = np.zeros((3, 40)), np.concatenate([problems, problems[:, ::-1], np.roll(problems, 7)])
    pooled = pooled_difference([base], [tuned])
    fixed = paired_difference(base.mean(axis=0), tuned.mean(axis=0))
    assert pooled.over_seeds == 0
    assert (pooled.low, pooled.high) == pytest.approx((fixed.low, fixed.high))


def test_seeds_widen_an_interval_by_hand():
    # Three seeds, 2 degrees of freedom: 4.303 * 0.1; below hypot(0.3, 0.4303), above hypot(0.2, 0.4303).
    wide = with_seeds(Interval(0.2, -0.1, 0.4), 0.1, 2)
    assert (wide.low, wide.high) == pytest.approx((0.2 - 0.52455, 0.2 + 0.47450), abs=1e-4)
    same = with_seeds(Interval(0.2, -0.1, 0.4), 0, 2, own=0.5)
    assert (same.low, same.high) == pytest.approx((-0.1, 0.4))
    assert with_seeds(Interval(0.2, -0.1, 0.4), 0.1, 1) == Interval(0.2, -1, 1)


def test_independent_intervals_have_a_mean_by_hand():
    mean = mean_of([Interval(0.1, 0.07, 0.14), Interval(0.3, 0.26, 0.33)])
    assert (mean.estimate, mean.low, mean.high) == pytest.approx((0.2, 0.2 - 0.025, 0.2 + 0.025))


def test_results_say_what_restating_them_prints(capsys):
    study = Path(__file__).parents[2] / "recipes" / "study"
    runpy.run_path(str(study / "restate.py"), run_name="__main__")
    results = (study.parent / "RESULTS.md").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 40
    assert [line for line in lines if line.split(" | ")[2] not in results] == []


def test_pairing_removes_the_problems_own_spread():
    rng = np.random.default_rng(4)
    base = (rng.random((200, 4)) < rng.integers(0, 2, (200, 1))).astype(float)
    tuned = base.copy()
    tuned[:20, 0] = 1
    difference = paired_difference(base.mean(axis=1), tuned.mean(axis=1))
    one = mean_accuracy(base.mean(axis=1))
    assert difference.estimate == pytest.approx(tuned.mean() - base.mean())
    assert difference.low > 0
    assert difference.high - difference.low < (one.high - one.low) / 4


def test_the_difference_turns_its_sign_with_the_models():
    a, b = [1, 0, 1, 0.5], [1, 1, 1, 1]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.estimate, there.low, there.high) == pytest.approx((-back.estimate, -back.high, -back.low))


def test_where_no_problem_differs_the_interval_still_has_a_width():
    assert mean_accuracy([0] * 20) == wilson(0, 20)
    assert mean_accuracy([1] * 20).low == pytest.approx(wilson(20, 20).low)
    # Up to 16.11 % of other problems: half solved now, those may be anything from 0 to 1.
    half = mean_accuracy([0.5] * 20)
    assert (half.low, half.high) == pytest.approx((0.5 - 0.1611 / 2, 0.5 + 0.1611 / 2), abs=5e-5)
    same = paired_difference([1, 0] * 10, [1, 0] * 10)
    assert (same.estimate, same.low, same.high) == pytest.approx((0, -0.1611, 0.1611), abs=5e-5)


def test_a_seed_decides_the_interval(monkeypatch):
    scores = list(np.random.default_rng(0).random(50))
    first = mean_accuracy(scores)
    assert mean_accuracy(scores) == first
    monkeypatch.setattr(statistics, "_SEED", 1)
    assert mean_accuracy(scores) != first


def test_resamples_in_pieces_are_all_there(monkeypatch):
    scores = np.random.default_rng(0).random(50)
    whole = mean_accuracy(scores)
    monkeypatch.setattr(statistics, "_CHUNK", 50 * 300)
    assert mean_accuracy(scores) == whole


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (paired_difference, ([1], [1, 0]), "1 and 2 problems cannot be paired"),
        (pooled_difference, ([[[1, 0]]], [[[1]]]), "cannot be paired"),
        (pooled_difference, ([[[1]]], [[[1], [0]]]), "cannot be paired"),
    ],
)
def test_what_cannot_be_paired_is_an_error(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
