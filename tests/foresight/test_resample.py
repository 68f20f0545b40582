from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genius_lite.foresight.resample import draw_without_replacement, foresight_distribution, take_highest

values = st.lists(st.floats(-30, 0), min_size=1, max_size=8)


def test_distribution_by_hand():
    # f = -0.1, -0.2 at tau 0.1: weights e^0, e^-1
    p = foresight_distribution([-0.1, -0.2], 0.1)
    assert p == pytest.approx([1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))])


@given(values, st.floats(0.01, 10))
def test_distribution_sums_to_one_and_keeps_the_order(f, tau):
    p = foresight_distribution(f, tau)
    assert p.sum() == pytest.approx(1)
    order = np.argsort(f, kind="stable")
    assert all(p[a] <= p[b] for a, b in pairwise(order))


@given(values, st.integers(1, 8), st.integers(0, 99))
def test_draws_are_distinct_sorted_and_repeatable(f, n, seed):
    drawn = draw_without_replacement(f, 0.1, n, np.random.default_rng(seed))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(n, len(f))
    assert drawn == draw_without_replacement(f, 0.1, n, np.random.default_rng(seed))


def test_draws_follow_the_sequential_distribution():
    f, tau, n = [-0.1, -0.2, -0.3], 0.1, 6000
    p = foresight_distribution(f, tau)
    rng = np.random.default_rng(5)
    seen = Counter(tuple(draw_without_replacement(f, tau, 2, rng)) for _ in range(n))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        exact = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        assert seen[a, b] / n == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / n))


def test_greedy_in_the_limit():
    rng = np.random.default_rng(0)
    assert all(draw_without_replacement([-3.0, -1.0, -2.0], 1e-6, 2, rng) == [1, 2] for _ in range(50))


def test_the_highest_by_hand():
    assert take_highest([-3.0, -1.0, -2.0], 2) == [1, 2]
    assert take_highest([-2.0, -1.0, -2.0, -1.0, -1.0], 2) == [1, 3]  # of equal ones the first
    assert take_highest([-2.0, -1.0], 5) == [0, 1]
