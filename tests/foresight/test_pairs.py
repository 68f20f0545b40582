from __future__ import annotations

from collections import Counter

import pytest

from genius_lite.foresight.pairs import preference_pairs
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.records import Candidate, Completion, Query, Rollout, Step


def candidate(token: int, value: float, advantage: float) -> Candidate:
    return Candidate(0, Completion([token], [-1.0], "step"), Completion([9], [value], "end"), value, advantage)


def rollout(*candidates: Candidate) -> Rollout:
    return Rollout(Query("q", "x", [1, 2]), [Step(0, list(candidates), [0], 0)])


THREE = rollout(candidate(3, -0.5, 0.1), candidate(4, -0.2, 0.4), candidate(5, -0.4, 0.2))


def test_the_best_is_chosen_with_its_advantage():
    (pair,) = preference_pairs(THREE, 0.1, "foresight", (0,))
    assert (pair.prompt_tokens, pair.chosen_tokens, pair.chosen_advantage) == ([1, 2], [4, 9], 0.4)
    assert pair.rejected_tokens in ([3, 9], [5, 9])
    assert pair.rejected_advantage == {3: 0.1, 5: 0.2}[pair.rejected_tokens[0]]


@pytest.mark.parametrize("negatives", ["foresight", "uniform"])
def test_the_rejected_is_drawn_from_f_without_the_chosen(negatives):
    drawn = Counter(preference_pairs(THREE, 0.1, negatives, (i,))[0].rejected_tokens[0] for i in range(3000))
    p = foresight_distribution([-0.5, -0.4], 0.1)[0] if negatives == "foresight" else 0.5
    assert drawn[3] / 3000 == pytest.approx(p, abs=0.035)
    assert drawn[4] == 0


def test_equal_responses_make_no_pair():
    assert preference_pairs(rollout(candidate(3, -0.5, 0), candidate(3, -0.5, 0)), 0.1, "foresight", (0,)) == []
    assert preference_pairs(rollout(candidate(3, -0.5, 0)), 0.1, "foresight", (0,)) == []


def test_the_draw_is_seeded():
    key = (4, 1, "q")
    assert preference_pairs(THREE, 0.1, "foresight", key) == preference_pairs(THREE, 0.1, "foresight", key)
