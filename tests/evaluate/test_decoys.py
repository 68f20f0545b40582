from __future__ import annotations

import pytest

from genius_lite.evaluate.decoys import fault

KNOWN = {f"p{n}": str(n + 5) for n in range(40)}  # of which every second is asked about


def _exact(problem, answer):
    return answer == KNOWN[problem]


def test_an_honest_scorer():
    assert fault(KNOWN, _exact) == ""


def test_a_known_answer_that_is_a_decoy_is_none():
    known = {"a": "0", "b": "0.0", "c": "True", "d": "", "e": "12"}
    assert fault(known, lambda problem, answer: answer == known[problem] or (problem, answer) == ("b", "0")) == ""


@pytest.mark.parametrize("decoy", ["", "I do not know", "nan", "0", "inf", "True"])
def test_a_scorer_that_calls_a_decoy_right(decoy):
    found = fault(KNOWN, lambda problem, answer: answer == decoy or _exact(problem, answer))
    assert found.startswith(f"its scorer calls {decoy!r} right in ")


def test_a_tenth_is_forgiven():
    def mistaken(wrong):
        return lambda problem, answer: _exact(problem, answer) or (answer == "nan" and problem in wrong)

    assert fault(KNOWN, mistaken(["p2", "p8"])) == ""
    assert fault(KNOWN, mistaken(["p2", "p8", "p20"])) == (
        "its scorer calls 'nan' right in 3 of 20 problems where it is wrong"
    )


def test_a_scorer_that_does_not_know_its_own_answers():
    assert fault(KNOWN, lambda problem, answer: False) == "its scorer calls 20 of 20 right answers wrong"


def test_a_scorer_that_calls_the_answers_of_others_right():
    found = fault(KNOWN, lambda problem, answer: answer in KNOWN.values())
    assert found == "its scorer calls another problem's answer right in 20 of 20 problems"


@pytest.mark.parametrize(("sharing", "right"), [(10, 0), (11, 11)])
def test_half_of_the_puzzles_may_share_their_solutions(sharing, right):
    alike = [f"p{n}" for n in range(2, 2 + 2 * sharing, 2)]  # for which the answer to p0 is right too
    found = fault(KNOWN, lambda problem, answer: _exact(problem, answer) or (answer == "5" and problem in alike))
    assert found == (f"its scorer calls another problem's answer right in {right} of 20 problems" if right else "")


def test_one_of_two_puzzles_may_share_the_solution_of_the_other():
    known = {"a": "7", "b": "8"}
    assert fault(known, lambda problem, answer: answer == known[problem] or (problem, answer) == ("a", "8")) == ""


def test_answers_that_only_the_scorer_knows():
    unknown = dict.fromkeys(KNOWN)
    assert fault(unknown, lambda problem, answer: False) == ""
    assert fault(unknown, lambda problem, answer: answer == "") == (
        "its scorer calls '' right in 20 of 20 problems where it is wrong"
    )
