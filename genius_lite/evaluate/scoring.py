"""Scorers of other packages, which may take any time or memory, crash, or lie: each in a process with limits.

math-verify bounds its time by an alarm signal, which only a main thread has, and by the clock, so that a machine that
stalls makes an answer wrong; reasoning-gym's scorers are not bounded at all. `python -m genius_lite.evaluate.scoring`
is that process, for one of the two.
"""

from __future__ import annotations

import ast
import cmath
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import msgspec

from genius_lite.data.sandbox import LimitedProcess, LimitError, serve
from genius_lite.errors import UserError
from genius_lite.evaluate.answers import final_number, without_markdown

DECOYS = ("", "I do not know", "nan", "0", "inf", "True")

_SECONDS = 2  # of computing, for one response; an ordinary one takes milliseconds
_MEMORY = 1_000_000_000  # bytes; reasoning-gym alone has 120 MB
_ASKED = 20  # problems; a scorer that lies does so on nearly all of them
_MISTAKEN = 0.1  # the share of problems that a scorer may misjudge: it moves an accuracy by as much


class Verdict(msgspec.Struct, frozen=True):
    """What a task says of a response: its score, from 0 (wrong) to 1 (right), and the answer it reads in it, if any.

    `timed_out`: the scorer went beyond its limits, or died of the response, which then counts as wrong.
    """

    score: float
    answer: str | None = None
    timed_out: bool = False


class Scorer(LimitedProcess):
    """One of these packages, by any thread.

    Args:
        made: arguments of the reasoning-gym data set whose `score_answer` it is; None is math-verify, which parses each
            known answer once, however many responses there are to it.

    Raises:
        UserError: math-verify is missing.
    """

    def __init__(self, made: dict[str, Any] | None = None):
        if not made and find_spec("math_verify") is None:
            raise UserError("the math-verify checker needs a package: pip install 'math-verify>=0.9'")
        super().__init__("genius_lite.evaluate.scoring", {"made": made}, seconds=_SECONDS, memory=_MEMORY)

    def read(self, known: str) -> None:
        """Have math-verify parse a known answer.

        Raises:
            UserError: it cannot be read as mathematics, or not within the limits.
        """
        try:
            self.ask({"known": known})
        except LimitError as e:
            raise UserError(f"the answer {known!r:.60} cannot be read as mathematics: {e}") from None

    def verdict(self, response: str, known: str, answer: str | None = None) -> Verdict:
        """Judge a response that gives this `answer`; `known` is the problem's, of reasoning-gym its `as_literal`."""
        try:
            return Verdict(self.ask({"response": response, "known": known})["score"], answer)
        except UserError:
            return Verdict(0.0, answer, timed_out=True)

    def stated(self, response: str) -> str | None:
        """Return what math-verify reads in a response, equal numbers in one spelling; None if that is nothing."""
        try:
            return self.ask({"response": response})["stated"]
        except UserError:
            return None


def fault(known: Mapping[str, str | None], is_right: Callable[[str, str], bool], decoys: Sequence[str] = DECOYS) -> str:
    """Why a scorer cannot measure anything; empty if it can.

    Of up to 20 problems it is asked about the known answer, about `decoys`, and about another problem's answer. It may
    be mistaken about the known answer, and about each decoy, in a tenth of them; a decoy that is the known answer, or
    the same number, is not asked there. Puzzles may share their solutions, so that another problem's answer has to be
    right for most problems, and two at least. Of the 96 scorers of reasoning-gym 0.1.25 that run no answers, three are
    refused, with 18 or more of 20.

    Args:
        known: the answer of each problem, by its id; None where only the scorer knows.
        is_right: whether it calls the answer to the problem of this id right.
    """
    asked = {problem: known[problem] for problem in list(known)[:: -(-len(known) // _ASKED) or 1]}
    answers = {problem: answer for problem, answer in asked.items() if answer}
    wrong = sum(not is_right(problem, answer) for problem, answer in answers.items())
    if wrong > _MISTAKEN * len(answers):
        return f"its scorer calls {wrong} of {len(answers)} right answers wrong"
    for decoy in decoys:
        unlike = [problem for problem, answer in asked.items() if not _same(decoy, answer)]
        right = sum(is_right(problem, decoy) for problem in unlike)
        if right > _MISTAKEN * len(unlike):
            return f"its scorer calls {decoy!r} right in {right} of {len(unlike)} problems where it is wrong"
    others = {
        problem: next((other for other in answers.values() if not _same(other, answer)), None)
        for problem, answer in answers.items()
    }
    unlike = {problem: other for problem, other in others.items() if other}
    right = sum(is_right(problem, other) for problem, other in unlike.items())
    if right > max(1, len(unlike) / 2):
        return f"its scorer calls another problem's answer right in {right} of {len(unlike)} problems"
    return ""


def _same(text: str, answer: str | None) -> bool:
    if answer is None:
        return False
    number, known = final_number(text), final_number(answer)
    return text.strip().casefold() == answer.strip().casefold() or bool(
        number and known and number.value == known.value
    )


def as_literal(entry: dict[str, Any]) -> str:
    """An entry as Python writes it, which keeps tuples, sets and numbers as keys, none of which JSON has.

    What is no literal, such as gsm_symbolic's fractions, is there as its text; a scorer that needs it is refused.
    """
    return repr(_plain(entry))


def _plain(value: Any) -> Any:
    """The same of Python's own types; codeio has NumPy's numbers, and knights_knaves its texts."""
    match value:
        case dict():
            return {_plain(key): _plain(held) for key, held in value.items()}
        case list() | tuple() | set() if type(value) in (list, tuple, set):
            return type(value)(_plain(held) for held in value)
        case bool() | None:
            return value
        case int():
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case complex() if cmath.isfinite(value):
            return complex(value)
        case _:
            return str(value)


def parsed_answer(answer: str) -> list[Any]:
    """A known answer as math-verify reads it.

    Raises:
        UserError: it cannot.
    """
    import math_verify

    # Without a delimiter the package reads plain numbers only.
    delimited = answer if re.search(r"\$|\\boxed|\\\(|\\\[", answer) else f"${answer}$"
    parsed = math_verify.parse(delimited, fallback_mode="no_fallback", parsing_timeout=0)
    if not parsed:
        raise UserError(f"the answer {answer!r:.60} cannot be read as mathematics")
    return parsed


def same_mathematics(response: str, parsed: list[Any]) -> bool:
    """Whether a response's answer equals a parsed one, by math-verify, which knows no Markdown."""
    import math_verify

    given = math_verify.parse(without_markdown(response), parsing_timeout=0)
    return math_verify.verify(parsed, given, timeout_seconds=None)


def stated_mathematics(response: str) -> str | None:
    """Return what math-verify reads in a response, equal numbers in one spelling; None if that is nothing."""
    import math_verify
    import sympy

    given = math_verify.parse(without_markdown(response), parsing_timeout=0)
    if not given:
        return None
    value: Any = given[0].rhs if isinstance(given[0], sympy.Eq) else given[0]
    is_number = isinstance(value, sympy.Expr) and value.is_number and value.is_extended_real
    return f"{float(value):.10g}" if is_number and math.isfinite(float(value)) else str(value)


def _by_math_verify() -> Callable[[dict[str, Any]], dict[str, Any]]:
    known_answer = cache(parsed_answer)
    same_mathematics("1", known_answer("1"))  # loads the package, and what it puts off until its first use

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        if "known" not in message:
            return {"stated": stated_mathematics(message["response"])}
        if "response" in message:
            return {"score": float(same_mathematics(message["response"], known_answer(message["known"])))}
        known_answer(message["known"])
        return {}

    return answer


def _by_reasoning_gym(made: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(**made)

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        try:
            score = float(dataset.score_answer(message["response"], ast.literal_eval(message["known"])))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
            # Not all of its scorers look before they parse: prime_factorization calls int() on any text.
            score = 0.0
        return {"score": min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0}

    return answer


if __name__ == "__main__":
    serve(lambda opening: _by_reasoning_gym(opening["made"]) if opening["made"] else _by_math_verify())
