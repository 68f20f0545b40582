from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.evaluate.scoring import Scorer, fault, parsed_answer, same_mathematics
from tests.support.answers import PIECES

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


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (r"so it is $\frac{1}{2}$", "0.5", 1),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        (r"$(x-1)(x+1)$", "x^2-1", 1),
        (r"$(x-1)(x+2)$", "x^2-1", 0),
        (r"$\{2, 1\}$", r"$\{1, 2\}$", 1),
        ("She has 72 apples.", "72", 1),
        ("hello", "72", 0),
        ("", "72", 0),
        # Markdown
        ("The answer is **73**.", "73", 1),
        ("So it is **73**", "73", 1),
        ("**The answer is 73.**", "73", 1),
        ("So *it* is `73`.", "73", 1),
        ("__So__ it is ***73***!", "73", 1),
        ("The answer is **73**.", "7", 0),
        ("$2*3*4$", "24", 1),
        (r"It is $28\%$.", "28", 1),
        (r"\boxed{28\%}", r"28\%", 1),
        ("Answer: 1,234", "1234", 1),
        (r"\boxed{\frac12}", "0.5", 1),
    ],
)
def test_math_verify(response, answer, score):
    assert same_mathematics(response, parsed_answer(answer)) == score


@pytest.fixture(scope="module")
def mathematics():
    """math-verify within its limits: SymPy works out a tower of powers for as long as it is let."""
    scorer = Scorer()
    yield scorer
    scorer.close()


@settings(deadline=None)  # the first call imports SymPy
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_no_response_makes_math_verify_raise(mathematics, response):
    verdict = mathematics.verdict(response, "7")
    assert verdict.score in (0.0, 1.0) and not (verdict.score and verdict.timed_out)


def test_a_tower_of_powers_is_wrong_and_slow(mathematics):
    verdict = mathematics.verdict("$9^{9^{9^9}}$", "7")
    assert (verdict.score, verdict.timed_out) == (0.0, True)
    assert mathematics.verdict("$7$", "7").score == 1


def test_an_answer_that_is_no_mathematics():
    with pytest.raises(UserError, match="cannot be read as mathematics"):
        parsed_answer("")
