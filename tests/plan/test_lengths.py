from __future__ import annotations

import math

import pytest

from genius_lite.data.steps import StepDelimiter
from genius_lite.plan.lengths import Lengths, Response, assumed, described, shortest
from genius_lite.recipe import Foresight
from genius_lite.records import Candidate, Completion, Query, Rollout, Step


def candidate(step: list[int], future: list[int]) -> Candidate:
    after = Completion(future, [-0.1] * len(future), "end") if future else None
    return Candidate(0, Completion(step, [-0.1] * len(step), "step"), after, 0.0, 0.0)


def test_responses_are_those_of_first_steps_with_their_futures():
    delimiter = StepDelimiter([b"a", b"b", b"\n", b".\n"])
    first = Step(0, [candidate([0, 2], [1, 3, 0]), candidate([2, 0], [])], [0], duplicates=2)
    later = Step(1, [candidate([0, 2], [0] * 9)], [0], duplicates=3)
    found = described([Rollout(Query("q", "?", [1]), [first, later])], delimiter, candidates=4, source="rehearsal")
    # A line break ends a step after text only, and never as the last token.
    assert found.responses == [[Response(5, [2, 4], 0.0), Response(2, [], 0.0)]]
    # Two of four candidates repeated another one, of which each had 1.5 to repeat; of later ones three of four.
    assert (found.repeats, found.later) == (pytest.approx(1 / 3), pytest.approx(0.5))
    assert found.mean == 3.5


def test_the_error_of_the_mean_comes_from_queries_that_differ():
    alike = Lengths([[Response(30, [])]] * 4, 0.0, "rehearsal")
    mixed = Lengths([[Response(n, [])] for n in (10, 50, 10, 50)], 0.0, "rehearsal")
    assert alike.error == 0
    assert mixed.error == pytest.approx(23.094 / 2 / 30, rel=1e-3)
    assert assumed(Foresight()).error == 0.5
    assert assumed(Foresight(max_tokens=100)).mean == 75
    assert shortest(Foresight(max_tokens=100)).mean == 48


def test_what_was_cut_off_is_taken_to_go_on_as_others_ended():
    seen = Lengths([[Response(10, [5]), Response(20, [10])], [Response(20, [5, 10])]], 0.0, "rehearsal")
    # One of three ended, in 50 tokens; two go on by the quartiles of an exponential distribution of 50.
    first, second = (20 + round(-50 * math.log((n + 0.5) / 2)) for n in (0, 1))
    longer = seen.extended(20, 1000)
    assert [[r.length for r in row] for row in longer.responses] == [[10, first], [second]]
    # 50 tokens in seven steps.
    assert longer.responses[1][0].steps[:4] == [5, 10, 17, 24]
    assert [r.length for row in seen.extended(20, 30).responses for r in row] == [10, 30, 30]
    # Nothing is known of what goes on for ever, and nothing changes where the whole was seen.
    assert Lengths([[Response(20, [])]], 0.0, "rehearsal").extended(20, 64).mean == 64
    assert seen.extended(20, 20) is seen


def test_a_warning_where_more_than_a_tenth_is_cut_off():
    found = Lengths([[Response(n, []) for n in (20, 20, *[10] * 8)]], 0.0, "rehearsal")
    warning = found.cut_off(20)
    assert warning
    assert warning.startswith("20% of the base model's responses are cut off at 20 tokens")
    assert "write foresight.max_tokens: 40" in warning
    assert Lengths([[Response(n, []) for n in (20, *[10] * 9)]], 0.0, "rehearsal").cut_off(20) is None
    assert assumed(Foresight(max_tokens=1)).cut_off(1) is None
