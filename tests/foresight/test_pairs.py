from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from genius_lite.foresight.pairs import preference_pairs
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.recipe import Pairs
from genius_lite.records import Candidate, Completion, Query, Rollout, Step


def candidate(token: int, value: float, advantage: float) -> Candidate:
    return Candidate(0, Completion([token], [-1.0], "step"), Completion([9], [value], "end"), value, advantage)


def rollout(*candidates: Candidate) -> Rollout:
    return Rollout(Query("q", "x", [1, 2]), [Step(0, list(candidates), [0], 0)])


THREE = rollout(candidate(3, -0.5, 0.1), candidate(4, -0.2, 0.4), candidate(5, -0.4, 0.2))


def test_the_best_is_chosen_with_its_advantage():
    (pair,) = preference_pairs(THREE, Pairs(), 0.1, (0,))
    assert (pair.prompt_tokens, pair.chosen_tokens, pair.chosen_advantage) == ([1, 2], [4, 9], 0.4)
    assert pair.rejected_tokens in ([3, 9], [5, 9])
    assert pair.rejected_advantage == {3: 0.1, 5: 0.2}[pair.rejected_tokens[0]]
    assert (pair.chosen_value, pair.rejected_value) == (-0.2, {3: -0.5, 5: -0.4}[pair.rejected_tokens[0]])


@pytest.mark.parametrize("negatives", ["foresight", "uniform"])
def test_the_rejected_is_drawn_from_f_without_the_chosen(negatives):
    drawn = Counter(
        preference_pairs(THREE, Pairs(negatives=negatives), 0.1, (i,))[0].rejected_tokens[0] for i in range(3000)
    )
    p = foresight_distribution([-0.5, -0.4], 0.1)[0] if negatives == "foresight" else 0.5
    assert drawn[3] / 3000 == pytest.approx(p, abs=0.035)
    assert drawn[4] == 0


def test_equal_responses_make_no_pair():
    assert preference_pairs(rollout(candidate(3, -0.5, 0), candidate(3, -0.5, 0)), Pairs(), 0.1, (0,)) == []
    assert preference_pairs(rollout(candidate(3, -0.5, 0)), Pairs(), 0.1, (0,)) == []


def test_the_draw_is_seeded():
    key = (4, 1, "q")
    assert preference_pairs(THREE, Pairs(), 0.1, key) == preference_pairs(THREE, Pairs(), 0.1, key)


def test_random_pairs_are_any_two_responses_in_either_order():
    drawn = Counter()
    for i in range(3000):
        (pair,) = preference_pairs(THREE, Pairs(choose="random"), 0.1, (i,))
        drawn[pair.chosen_tokens[0], pair.rejected_tokens[0]] += 1
        advantages = {3: 0.1, 4: 0.4, 5: 0.2}
        assert pair.chosen_advantage == advantages[pair.chosen_tokens[0]]
        assert pair.rejected_advantage == advantages[pair.rejected_tokens[0]]
    assert set(drawn) == set(permutations((3, 4, 5), 2))
    # Each of the six is Binomial(3000, 1/6): five standard deviations are 102.
    assert all(abs(count - 500) < 102 for count in drawn.values())


def test_random_pairs_count_equal_responses_once():
    random = Pairs(choose="random")
    twins = rollout(candidate(3, -0.5, 0.1), candidate(3, -0.5, 0.1), candidate(4, -0.2, 0.4))
    chosen = Counter(preference_pairs(twins, random, 0.1, (i,))[0].chosen_tokens[0] for i in range(2000))
    assert abs(chosen[3] - 1000) < 112  # five standard deviations of Binomial(2000, 1/2)
    assert chosen[3] + chosen[4] == 2000
    assert preference_pairs(rollout(candidate(3, -0.5, 0), candidate(3, -0.5, 0)), random, 0.1, (0,)) == []


def test_a_pair_knows_which_response_was_cut_off():
    ended = Candidate(0, Completion([3], [-0.1], "end"), None, -0.1, 0.0)
    cut_in_its_future = Candidate(0, Completion([4], [-1.0], "step"), Completion([9], [-0.5], "length"), -0.5, 0.0)
    full_after_its_step = Candidate(0, Completion([5], [-0.5], "step"), None, -0.5, 0.0)
    for other in (cut_in_its_future, full_after_its_step):
        (pair,) = preference_pairs(rollout(ended, other), Pairs(), 0.1, (0,))
        assert (pair.chosen_ended, pair.rejected_ended) == (True, False)
