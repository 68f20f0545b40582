from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genius_lite.evaluate.statistics import mcnemar_exact, mean_accuracy, paired_difference, wilson


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
    interval = mean_accuracy([[1, 1, 1, 1], [0], [0.5, 0]], seed=0)
    assert interval.estimate == pytest.approx((1 + 0 + 0.25) / 3)
    assert interval.low == 0
    assert interval.high == 1


def test_bootstrap_of_two_problems_by_hand():
    # Of two problems, 0 and 1, resamples have the means 0, 1/2 and 1 with 1/4, 1/2 and 1/4.
    wide = mean_accuracy([[0], [1]], seed=0, confidence=0.6)
    narrow = mean_accuracy([[0], [1]], seed=0, confidence=0.4)
    assert (wide.low, wide.high, narrow.low, narrow.high) == (0, 1, 0.5, 0.5)


def test_the_bootstrap_agrees_with_the_clustered_standard_error():
    rng = np.random.default_rng(3)
    scores = (rng.random((400, 8)) < rng.random((400, 1))).astype(float)
    half = 1.96 * scores.mean(axis=1).std(ddof=1) / 20
    interval = mean_accuracy(scores.tolist(), seed=1)
    assert (interval.low, interval.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.003)
    # Samples of one problem are no new problems: taken for 3,200 trials, the interval is too narrow.
    naive = wilson(float(scores.sum()), scores.size)
    assert interval.high - interval.low > 1.4 * (naive.high - naive.low)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """300 samples of 60 problems: 95 % +- 3 binomial standard errors (1.3 points), less the known narrowness."""
    rng = np.random.default_rng(11)
    covered, paired = 0, 0
    for seed in range(300):
        skill = rng.beta(1, 2, size=(60, 1))
        base = rng.random((60, 4)) < skill
        tuned = rng.random((60, 4)) < skill + 0.1 * (1 - skill)
        interval = mean_accuracy(base.tolist(), seed, resamples=1000)
        covered += interval.low <= 1 / 3 <= interval.high
        difference = paired_difference(base.tolist(), tuned.tolist(), seed, resamples=1000)
        paired += difference.low <= 0.1 * (1 - 1 / 3) <= difference.high
    assert 0.90 <= covered / 300 <= 0.985
    assert 0.90 <= paired / 300 <= 0.985


def test_pairing_removes_the_problems_own_spread():
    rng = np.random.default_rng(4)
    base = (rng.random((200, 4)) < rng.integers(0, 2, (200, 1))).astype(float)
    tuned = base.copy()
    tuned[:20, 0] = 1
    difference = paired_difference(base.tolist(), tuned.tolist(), seed=0)
    one = mean_accuracy(base.tolist(), seed=0)
    assert difference.estimate == pytest.approx(tuned.mean() - base.mean())
    assert difference.low > 0
    assert difference.high - difference.low < (one.high - one.low) / 4


def test_the_difference_turns_its_sign_with_the_models():
    a, b = [[1], [0], [1], [0.5]], [[1], [1], [1], [1]]
    there, back = paired_difference(a, b, seed=2), paired_difference(b, a, seed=2)
    assert (there.estimate, there.low, there.high) == pytest.approx((-back.estimate, -back.high, -back.low))


def test_where_no_problem_differs_the_interval_still_has_a_width():
    assert mean_accuracy([[0, 0]] * 20, seed=0) == wilson(0, 20)
    assert mean_accuracy([[1, 1]] * 20, seed=0).low == pytest.approx(wilson(20, 20).low)
    # Up to 16.11 % of other problems: half solved now, those may be anything from 0 to 1.
    half = mean_accuracy([[1, 0]] * 20, seed=0)
    assert (half.low, half.high) == pytest.approx((0.5 - 0.1611 / 2, 0.5 + 0.1611 / 2), abs=5e-5)
    same = paired_difference([[1], [0]] * 10, [[1], [0]] * 10, seed=0)
    assert (same.estimate, same.low, same.high) == pytest.approx((0, -0.1611, 0.1611), abs=5e-5)


def test_a_seed_decides_the_interval():
    scores = np.random.default_rng(0).random((50, 3)).tolist()
    assert mean_accuracy(scores, seed=1) == mean_accuracy(scores, seed=1)
    assert mean_accuracy(scores, seed=1) != mean_accuracy(scores, seed=2)


def test_resamples_in_pieces_are_all_there(monkeypatch):
    scores = np.random.default_rng(0).random((50, 3)).tolist()
    whole = mean_accuracy(scores, seed=1, resamples=1000)
    monkeypatch.setattr("genius_lite.evaluate.statistics._CHUNK", 50 * 300)
    assert mean_accuracy(scores, seed=1, resamples=1000) == whole


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (wilson, (1, 0), "1 successes of 0 trials"),
        (wilson, (3, 2), "3 successes of 2 trials"),
        (mean_accuracy, ([], 0), "there must be a problem"),
        (mean_accuracy, ([[1], []], 0), "every problem needs a sample"),
        (paired_difference, ([[1]], [[1], [0]], 0), "1 and 2 problems cannot be paired"),
        (mcnemar_exact, ([1], [1, 0]), "1 and 2 problems cannot be paired"),
        (mcnemar_exact, ([0.5], [1]), "scores of 0 or 1"),
    ],
)
def test_what_has_no_answer_is_an_error(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
