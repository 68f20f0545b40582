"""Scorers of other packages, which may take any time or memory, or crash: each in a process of its own, with limits.

math-verify bounds its time by an alarm signal, which only a main thread has, and by the clock, so that a machine that
stalls makes an answer wrong; reasoning-gym's scorers are not bounded at all. `python -m genius_lite.evaluate.scoring`
is that process, for one of the two.
"""

from __future__ import annotations

import ast
import cmath
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import msgspec

from genius_lite.data.sandbox import LimitedProcess, LimitError, serve
from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import NO_MATH_VERIFY, parsed_answer, same_mathematics

_SECONDS = 2  # of computing, for one response; an ordinary one takes milliseconds
_MEMORY = 1_000_000_000  # bytes; reasoning-gym alone has 120 MB


class Verdict(msgspec.Struct, frozen=True):
    """What a task says of a response: its score, from 0 (wrong) to 1 (right).

    `timed_out`: the scorer went beyond its limits of time or memory, or died of the response, which then counts as
    wrong.
    """

    score: float
    timed_out: bool = False


class MathVerify:
    """Scores by the package math-verify. It parses each known answer once, however many responses there are to it.

    Raises:
        UserError: the package is missing.
    """

    def __init__(self) -> None:
        if find_spec("math_verify") is None:
            raise UserError(NO_MATH_VERIFY)
        self._process = _limited({"scorer": "math-verify"})
        self.close = self._process.close

    def read(self, known: str) -> None:
        """Parse a known answer.

        Raises:
            UserError: it cannot be read as mathematics, or not within the limits.
        """
        try:
            refused = self._process.ask({"known": known})["refused"]
        except LimitError as e:
            refused = f"the answer {known!r:.60} cannot be read as mathematics: {e}"
        if refused:
            raise UserError(refused)

    def verdict(self, response: str, known: str) -> Verdict:
        """Of a response, by any thread."""
        return _verdict(self._process, {"known": known, "response": response})


class ReasoningGym:
    """Scores by the `score_answer` of one of reasoning-gym's data sets, made with these arguments."""

    def __init__(self, name: str, *, size: int, seed: int, config: dict[str, Any]) -> None:
        made = {"name": name, "size": size, "seed": seed, **config}
        self._process = _limited({"scorer": "reasoning-gym", "made": made})
        self.close = self._process.close

    def verdict(self, submitted: str, entry: str) -> Verdict:
        """Of an answer that is submitted to one of the data set's entries (`as_literal`), by any thread."""
        return _verdict(self._process, {"submitted": submitted, "entry": entry})


def as_literal(entry: dict[str, Any]) -> str:
    """An entry as Python writes it, which keeps tuples, sets and numbers as keys, none of which JSON has.

    What Python cannot write as a literal is there as its text, such as gsm_symbolic's fractions. A scorer that needs it
    calls the known answers wrong, and is refused for that.
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


def _limited(opening: dict[str, Any]) -> LimitedProcess:
    return LimitedProcess("genius_lite.evaluate.scoring", opening, seconds=_SECONDS, memory=_MEMORY)


def _verdict(process: LimitedProcess, message: dict[str, Any]) -> Verdict:
    try:
        return Verdict(process.ask(message)["score"])
    except LimitError:
        return Verdict(0.0, timed_out=True)


def _scorer(opening: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What answers the messages, in the process."""
    return _by_math_verify() if opening["scorer"] == "math-verify" else _by_reasoning_gym(opening["made"])


def _by_math_verify() -> Callable[[dict[str, Any]], dict[str, Any]]:
    known_answer = cache(parsed_answer)
    same_mathematics("1", known_answer("1"))  # loads the package, and what it puts off until its first use

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        if "response" in message:
            return {"score": float(same_mathematics(message["response"], known_answer(message["known"])))}
        try:
            known_answer(message["known"])
        except UserError as e:
            return {"refused": str(e)}
        return {"refused": ""}

    return answer


def _by_reasoning_gym(made: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(**made)

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        try:
            score = float(dataset.score_answer(message["submitted"], ast.literal_eval(message["entry"])))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
            # Not all of its scorers look before they parse: prime_factorization calls int() on any text.
            score = 0.0
        return {"score": score if math.isfinite(score) else 0.0}

    return answer


if __name__ == "__main__":
    serve(_scorer)
