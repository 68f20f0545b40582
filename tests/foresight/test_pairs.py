from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import permutations

import msgspec
import pytest

from genius_lite.foresight.pairs import why_none
from genius_lite.foresight.resample import foresight_distribution
from genius_lite.recipe import Foresight, Model, Pairs, Queries, Recipe
from genius_lite.records import Candidate, Completion, Finish, PreferencePair, Query, Rollout, Step
from tests.support.rollouts import last_digit, preference_pairs


def candidate(token: int, value: float, advantage: float) -> Candidate:
    return Candidate(0, Completion([token], [-1.0], "step"), Completion([9], [value], "end"), value, advantage)


def rollout(*candidates: Candidate) -> Rollout:
    return Rollout(Query("q", "x", [1, 2]), [Step(0, list(candidates), [0])])


def pairs_of(of: Rollout, cfg: Pairs, tau: float, key: tuple[int | str, ...]) -> list[PreferencePair]:
    return preference_pairs([of], cfg, tau, key, last_digit)[0]


THREE = rollout(candidate(3, -0.5, 0.1), candidate(4, -0.2, 0.4), candidate(5, -0.4, 0.2))


def test_the_best_is_chosen_with_its_advantage():
    (pair,) = pairs_of(THREE, Pairs(), 0.1, (0,))
    assert (pair.prompt_tokens, pair.chosen_tokens, pair.chosen_advantage) == ([1, 2], [4, 9], 0.4)
    assert pair.rejected_tokens in ([3, 9], [5, 9])
    assert pair.rejected_advantage == {3: 0.1, 5: 0.2}[pair.rejected_tokens[0]]
    assert (pair.chosen_value, pair.rejected_value) == (-0.2, {3: -0.5, 5: -0.4}[pair.rejected_tokens[0]])


@pytest.mark.parametrize("negatives", ["foresight", "uniform"])
def test_the_rejected_is_drawn_from_f_without_the_chosen(negatives):
    drawn = Counter(pairs_of(THREE, Pairs(negatives=negatives), 0.1, (i,))[0].rejected_tokens[0] for i in range(3000))
    p = foresight_distribution([-0.5, -0.4], 0.1)[0] if negatives == "foresight" else 0.5
    assert drawn[3] / 3000 == pytest.approx(p, abs=0.035)
    assert drawn[4] == 0


THINKS = "if the model thinks, give it foresight.thought_tokens, or switch thoughts off in queries.template"


@pytest.mark.parametrize(
    ("future", "named"), [(None, f"foresight.max_tokens; {THINKS}"), (4, "foresight.future_tokens")]
)
def test_where_all_are_cut_off_it_is_said_by_what(future, named):
    cfg = Recipe(out="r", model=Model(gguf="m"), queries=Queries(source="q"), foresight=Foresight(future_tokens=future))
    assert why_none(cfg, {"truncated": 3}, [THREE]).endswith(f"loosen pairs.truncated, or {named}")


def test_where_no_vote_is_won_thoughts_may_have_been_cut_off():
    voting = Recipe(out="r", model=Model(gguf="m"), queries=Queries(source="q"), pairs=Pairs(choose="agreed"))
    assert why_none(voting, {"agreement": 3}, [THREE]).endswith(f"queries.answers); {THINKS}")


def test_equal_responses_make_no_pair():
    assert pairs_of(rollout(candidate(3, -0.5, 0), candidate(3, -0.5, 0)), Pairs(), 0.1, (0,)) == []
    assert pairs_of(rollout(candidate(3, -0.5, 0)), Pairs(), 0.1, (0,)) == []


def test_the_draw_is_seeded():
    key = (4, 1, "q")
    assert pairs_of(THREE, Pairs(), 0.1, key) == pairs_of(THREE, Pairs(), 0.1, key)


def test_random_pairs_are_any_two_responses_in_either_order():
    drawn = Counter()
    for i in range(3000):
        (pair,) = pairs_of(THREE, Pairs(choose="random", truncated="keep"), 0.1, (i,))
        drawn[pair.chosen_tokens[0], pair.rejected_tokens[0]] += 1
        advantages = {3: 0.1, 4: 0.4, 5: 0.2}
        assert pair.chosen_advantage == advantages[pair.chosen_tokens[0]]
        assert pair.rejected_advantage == advantages[pair.rejected_tokens[0]]
    assert set(drawn) == set(permutations((3, 4, 5), 2))
    # Each of the six is Binomial(3000, 1/6): five standard deviations are 102.
    assert all(abs(count - 500) < 102 for count in drawn.values())


def test_random_pairs_count_equal_responses_once():
    random = Pairs(choose="random", truncated="keep")
    twins = rollout(candidate(3, -0.5, 0.1), candidate(3, -0.5, 0.1), candidate(4, -0.2, 0.4))
    chosen = Counter(pairs_of(twins, random, 0.1, (i,))[0].chosen_tokens[0] for i in range(2000))
    assert abs(chosen[3] - 1000) < 112  # five standard deviations of Binomial(2000, 1/2)
    assert chosen[3] + chosen[4] == 2000
    assert pairs_of(rollout(candidate(3, -0.5, 0), candidate(3, -0.5, 0)), random, 0.1, (0,)) == []


def test_a_pair_knows_which_response_was_cut_off():
    ended = Candidate(0, Completion([3], [-0.1], "end"), None, -0.1, 0.0)
    cut_in_its_future = Candidate(0, Completion([4], [-1.0], "step"), Completion([9], [-0.5], "length"), -0.5, 0.0)
    full_after_its_step = Candidate(0, Completion([5], [-0.5], "step"), None, -0.5, 0.0)
    for other in (cut_in_its_future, full_after_its_step):
        (pair,) = pairs_of(rollout(ended, other), Pairs(), 0.1, (0,))
        assert (pair.chosen_ended, pair.rejected_ended) == (True, False)


def voting(*said: int, values: list[float] | None = None, finish: dict[int, Finish] | None = None) -> Rollout:
    """One step; candidate i responds with [10 + i, its answer]."""
    values, finish = values or [-0.5] * len(said), finish or {}
    return rollout(
        *(
            Candidate(0, Completion([10 + i], [-1.0], "step"), Completion([digit], [f], finish.get(i, "end")), f, 0.0)
            for i, (digit, f) in enumerate(zip(said, values, strict=True))
        )
    )


AGREED = Pairs(choose="agreed", negatives="foresight", looping="keep", truncated="keep")


def test_the_agreed_answer_is_chosen_at_its_highest_value():
    of = voting(8, 7, 7, 9, values=[-0.1, -0.4, -0.3, -0.2])
    drawn = Counter()
    for i in range(2000):
        (pair,) = pairs_of(of, AGREED.model_copy(update={"negatives": "uniform"}), 0.1, (i,))
        assert pair.chosen_tokens == [12, 7]
        drawn[tuple(pair.rejected_tokens)] += 1
    assert set(drawn) == {(10, 8), (13, 9)}
    assert abs(drawn[10, 8] - 1000) < 112  # five standard deviations of Binomial(2000, 1/2)


def test_the_rejected_answer_is_rarer_and_not_merely_another():
    (pair,) = pairs_of(voting(7, 7, 8, 8, 9), AGREED, 0.1, (0,))
    assert pair.rejected_tokens == [14, 9]


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (voting(7, 8, 9), "each answer is given once"),
        (voting(7, 7, 7), "nobody says otherwise"),
        (voting(7, 7, 8, finish={2: "length"}), "what was cut off has no answer"),
        (voting(7, 7, 8, finish={1: "length"}), "nor a vote"),
        (voting(7, 7, 0), "who states nothing is not rarer"),
        (voting(0, 0), "no answer at all"),
    ],
)
def test_a_vote_that_sets_no_two_apart_leaves_a_step_without_a_pair(of, why):
    pairs, left_out = preference_pairs([of], AGREED, 0.1, (0,), last_digit)
    assert not pairs, why
    assert {name: n for name, n in left_out.items() if n} == {"agreement": 1}


def test_where_a_filter_refuses_another_one_is_drawn():
    values = [-0.1, -0.12, -0.13, -0.9]
    of = voting(7, 8, 9, 6, values=values)
    for i in range(50):
        pairs, left_out = preference_pairs([of], Pairs(min_gap=0.5), 0.1, (i,), last_digit)
        assert [p.rejected_tokens for p in pairs] == [[13, 6]]
        assert not any(left_out.values())
    pairs, left_out = preference_pairs([of], Pairs(min_gap=0.9), 0.1, (0,), last_digit)
    assert (pairs, left_out["gap"], sum(left_out.values())) == ([], 1, 1)


def test_the_best_response_that_no_filter_refuses_is_chosen():
    of = voting(7, 8, 9, 6, values=[-0.1, -0.2, -0.3, -0.4], finish={0: "length", 1: "length"})
    drawn = Counter()
    for i in range(50):
        (pair,) = pairs_of(of, Pairs(truncated="chosen", negatives="uniform"), 0.1, (i,))
        drawn[tuple(pair.chosen_tokens), tuple(pair.rejected_tokens)] += 1
    assert set(drawn) == {((12, 9), (13, 6))}, "and nothing of a higher f is rejected"
    pairs, left_out = preference_pairs([of], Pairs(truncated="chosen"), 0.1, (0,), last_digit)
    assert (len(pairs), sum(left_out.values())) == (1, 0)


def test_a_step_whose_responses_may_all_not_be_chosen_is_counted_once():
    cut: dict[int, Finish] = {0: "length", 1: "length", 2: "length"}
    pairs, left_out = preference_pairs(
        [voting(7, 8, 9, finish=cut)], Pairs(min_gap=0.0, truncated="chosen"), 0.1, (0,), last_digit
    )
    assert (pairs, left_out["truncated"], sum(left_out.values())) == ([], 1, 1)
    # The lowest alone may be chosen, and there is none to reject: the step was lost to what the best was refused for.
    lowest = voting(7, 8, 9, values=[-0.1, -0.2, -0.3], finish={0: "length", 1: "length"})
    pairs, left_out = preference_pairs([lowest], Pairs(min_gap=0.0, truncated="chosen"), 0.1, (0,), last_digit)
    assert (pairs, left_out["truncated"], sum(left_out.values())) == ([], 1, 1)


def test_what_only_the_pair_is_refused_for_chooses_no_other_response():
    """No rejected one is as far below the best as is asked; below the next best one none is either."""
    of = voting(7, 8, 9, values=[-0.1, -0.2, -0.3])
    pairs, left_out = preference_pairs([of], Pairs(min_gap=0.5), 0.1, (0,), last_digit)
    assert (pairs, left_out["gap"]) == ([], 1)
    long = rollout(
        Candidate(0, Completion([3] + [4] * 9, [-0.1] * 10, "end"), None, -0.1, 0.0),
        Candidate(0, Completion([5], [-0.2], "end"), None, -0.2, 0.0),
        Candidate(0, Completion([6], [-0.3], "end"), None, -0.3, 0.0),
    )
    pairs, left_out = preference_pairs([long], Pairs(max_length_ratio=2.0, looping="keep"), 0.1, (0,), last_digit)
    assert (pairs, left_out["length"]) == ([], 1)


def test_the_best_with_enough_votes_is_chosen():
    of = voting(8, 7, 7, 9, values=[-0.1, -0.2, -0.3, -0.4])
    (pair,) = pairs_of(of, Pairs(agreement=0.5), 0.1, (0,))
    assert (pair.chosen_tokens, pair.rejected_tokens) == ([11, 7], [13, 9])


def test_the_lead_of_the_agreed_answer_weighs_the_pair():
    of = voting(7, 7, 7, 8, 9, 0)  # 3, 1, 1 of five votes
    (pair,) = pairs_of(of, AGREED.model_copy(update={"weigh": "votes"}), 0.1, (0,))
    assert pair.lead == pytest.approx(2 / 5)
    (pair,) = pairs_of(of, AGREED, 0.1, (0,))
    assert pair.lead == 1.0
    with pytest.raises(ValueError, match="weigh votes needs choose: agreed"):
        Pairs(weigh="votes")


def test_answers_that_share_nothing_vote_as_often_as_they_were_drawn():
    same, other, third = ([10, 7], [11, 8], [12, 8])
    answers = [Candidate(0, Completion(tokens, [-0.1] * 2, "end"), None, -0.1, -0.1) for tokens in (same,) * 3]
    answers += [Candidate(0, Completion(tokens, [-0.2] * 2, "end"), None, -0.2, -0.2) for tokens in (other, third)]
    (pair,) = pairs_of(rollout(*answers), AGREED.model_copy(update={"weigh": "votes"}), 0.1, (0,))
    assert (pair.chosen_tokens, pair.rejected_tokens in (other, third)) == (same, True)
    assert pair.lead == pytest.approx(1 / 5)  # three votes to two


def test_a_step_that_is_drawn_again_has_no_second_vote():
    often = Candidate(0, Completion([10, 7], [-0.1] * 2, "end"), None, -0.1, -0.1, times=3)
    two = [Candidate(0, Completion([t, 8], [-0.3] * 2, "end"), None, -0.3, -0.3) for t in (11, 12)]
    (pair,) = pairs_of(rollout(often, *two), AGREED.model_copy(update={"weigh": "votes"}), 0.1, (0,))
    assert (pair.chosen_tokens[-1], pair.rejected_tokens) == (8, [10, 7]), "two lines against one that is a habit"
    assert pair.lead == pytest.approx(1 / 3)


def test_of_the_agreed_answer_one_that_may_be_chosen_is():
    loop = [3] * 40
    of = rollout(
        Candidate(0, Completion([*loop, 7], [-0.1] * 41, "end"), None, -0.1, 0.0),
        Candidate(0, Completion([11, 7], [-0.2] * 2, "end"), None, -0.2, 0.0),
        Candidate(0, Completion([12, 8], [-0.15] * 2, "end"), None, -0.15, 0.0),
    )
    (pair,) = pairs_of(of, Pairs(choose="agreed", looping="chosen"), 0.1, (0,))
    assert (pair.chosen_tokens, pair.rejected_tokens) == ([11, 7], [12, 8])


def test_a_random_pair_that_is_refused_is_drawn_again_too():
    of = voting(7, 8, 9, finish={0: "length", 1: "length"})
    for i in range(50):
        (pair,) = pairs_of(of, Pairs(choose="random", truncated="chosen"), 0.1, (i,))
        assert pair.chosen_tokens == [12, 9]


def test_random_pairs_of_many_responses_are_drawn_and_not_listed():
    many = rollout(*(candidate(token, -0.1 * token, 0.0) for token in range(3000)))
    tracemalloc.start()
    assert pairs_of(many, Pairs(choose="random"), 0.1, (0,))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6, "9 million pairs, as numbers of 8 bytes"


def test_questions_draw_apart():
    many = [msgspec.structs.replace(THREE, query=Query(f"q{n}", "x", [1, 2])) for n in range(40)]
    pairs, _ = preference_pairs(many, Pairs(negatives="uniform"), 0.1, (0, 1), last_digit)
    rejected = Counter(pair.rejected_tokens[0] for pair in pairs)
    assert rejected.keys() == {3, 5} and min(rejected.values()) >= 8  # of 40, four standard deviations from half
