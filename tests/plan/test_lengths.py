from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.plan.lengths import Ends, Lengths, ResponseLength, assumed, described, shortest
from genius_lite.recipe import Foresight
from genius_lite.records import Candidate, Completion, Finish, Query, Rollout, Step


def candidate(step: str, future: str, finish: Finish = "end", times: int = 1) -> Candidate:
    """A candidate of the tiny model, one token for each byte."""

    def completion(text: str, finish: Finish) -> Completion:
        return Completion([*text.encode()], [-0.1] * len(text), finish)

    if not future:
        return Candidate(0, completion(step, finish), None, 0.0, 0.0, times)
    return Candidate(0, completion(step, "step"), completion(future, finish), 0.0, 0.0, times)


@pytest.fixture(scope="module")
def vocabulary(tiny_llama) -> Iterator[Vocabulary]:
    with Vocabulary.open(tiny_llama) as opened:
        yield opened


def test_responses_are_those_of_first_steps_with_their_futures(vocabulary):
    first = Step(0, [candidate("a\n", "b.\na", times=3), candidate("\na", "")], [0])
    later = Step(1, [candidate("a\n", "a" * 9, times=4)], [0])
    cfg = Foresight(candidates=4, max_tokens=20)
    found = described([Rollout(Query("q", "?", [1]), [first, later])], vocabulary, cfg, "rehearsal")
    # A line break ends a step after text only, and never as the last token.
    assert found.responses == [[ResponseLength(6, [2, 5], 0.0), ResponseLength(2, [], 0.0)]]
    # Two of four candidates repeated another one, of which each had 1.5 to repeat; of later ones three of four.
    assert (found.repeats, found.later) == (pytest.approx(1 / 3), pytest.approx(0.5))
    assert found.mean == 4
    assert found.ends == Ends(limit=20, responses=2, ended=2, thoughts=0, thoughts_ended=0)
    assert found.ends.line == "100% of 2 responses ended within 20 tokens"


def test_a_thought_that_was_cut_off_is_told_apart(vocabulary):
    cfg = Foresight(candidates=4, max_tokens=16, thought_tokens=8)
    given = [
        candidate("<think>\n", "5</think>\n7"),
        candidate("<think>\n", "a" * 16, "length"),
        candidate("<think>b</think>", "a" * 8, "length"),
        candidate("7", ""),
    ]
    answered = Rollout(Query("q", "?", [*b"?"]), [Step(0, given, [0])])
    begun = [candidate("5</think>7", ""), candidate("5\n", "a" * 22, "length"), candidate("5\n", "6")]
    opened = Rollout(Query("r", "?", [*b"?<think>\n"]), [Step(0, begun, [0])])
    agreed = Rollout(Query("s", "?", [*b"?"]), [Step(0, [candidate("7\n", "", "step")], [0], foreseen=False)])
    found = described([answered, opened, agreed], vocabulary, cfg, "round 1")
    assert found.ends == Ends(limit=24, responses=7, ended=4, thoughts=6, thoughts_ended=3)
    assert found.ends.line == "57% of 7 responses ended within 24 tokens, and so did 50% of 6 thoughts"
    warning = found.cut_off(cfg)
    assert warning
    assert "cut off at 24 tokens" in warning
    assert "write foresight.thought_tokens: 32, or switch thoughts off in queries.template" in warning


def test_steps_that_were_not_foreseen_are_no_responses(vocabulary):
    cfg = Foresight(candidates=4, max_tokens=20)
    foreseen = Rollout(Query("q", "?", [1]), [Step(0, [candidate("a\n", "b" * 18, "length")], [0])])
    agreed = Rollout(Query("r", "?", [1]), [Step(0, [candidate("7\n", "", "step")], [0], foreseen=False)])
    found = described([agreed, foreseen], vocabulary, cfg, "round 1")
    assert ([[r.length for r in row] for row in found.responses], found.ends and found.ends.responses) == ([[20]], 1)
    assert (found.cut_off(cfg) or "").startswith("100%")
    none = described([agreed], vocabulary, cfg, "round 1")
    assert (none.mean, none.ends) == (15, None), "three quarters of the limit"


def test_the_error_of_the_mean_comes_from_queries_that_differ():
    alike = Lengths([[ResponseLength(30, [])]] * 4, 0.0, "rehearsal")
    mixed = Lengths([[ResponseLength(n, [])] for n in (10, 50, 10, 50)], 0.0, "rehearsal")
    assert alike.error == 0
    assert mixed.error == pytest.approx(23.094 / 2 / 30, rel=1e-3)
    assert assumed(Foresight()).error == 0.5
    assert assumed(Foresight(max_tokens=100)).mean == 75
    assert assumed(Foresight(max_tokens=60, thought_tokens=40)).mean == 75
    assert shortest(Foresight(max_tokens=100)).mean == 48


def test_what_was_cut_off_is_taken_to_go_on_as_others_ended():
    seen = Lengths(
        [[ResponseLength(10, [5]), ResponseLength(20, [10])], [ResponseLength(20, [5, 10])]], 0.0, "rehearsal"
    )
    # One of three ended, in 50 tokens; two go on by the quartiles of an exponential distribution of 50.
    first, second = (20 + round(-50 * math.log((n + 0.5) / 2)) for n in (0, 1))
    longer = seen.extended(20, 1000)
    assert [[r.length for r in row] for row in longer.responses] == [[10, first], [second]]
    # 50 tokens in seven steps.
    assert longer.responses[1][0].steps[:4] == [5, 10, 17, 24]
    assert [r.length for row in seen.extended(20, 30).responses for r in row] == [10, 30, 30]
    # Nothing is known of what goes on for ever, and nothing changes where the whole was seen.
    assert Lengths([[ResponseLength(20, [])]], 0.0, "rehearsal").extended(20, 64).mean == 64
    assert seen.extended(20, 20) is seen


def test_a_warning_where_more_than_a_tenth_is_cut_off():
    found = Lengths([[ResponseLength(n, []) for n in (20, 20, *[10] * 8)]], 0.0, "rehearsal")
    warning = found.cut_off(Foresight(max_tokens=20))
    assert warning
    assert warning.startswith("20% of the base model's responses are cut off at 20 tokens")
    assert "write foresight.max_tokens: 40" in warning
    assert (
        Lengths([[ResponseLength(n, []) for n in (20, *[10] * 9)]], 0.0, "rehearsal").cut_off(Foresight(max_tokens=20))
        is None
    )
    assert assumed(Foresight(max_tokens=1)).cut_off(Foresight(max_tokens=1)) is None
