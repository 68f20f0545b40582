"""Does a scorer lie? It is asked about answers that are known to be right, and about some that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from genius_lite.evaluate.answers import final_number

DECOYS = ("", "I do not know", "nan", "0", "inf", "True")

_ASKED = 20  # problems; a scorer that lies does so on nearly all of them
_MISTAKEN = 0.1  # the share of problems that a scorer may misjudge: it moves an accuracy by as much


def fault(known: Mapping[str, str | None], is_right: Callable[[str, str], bool]) -> str:
    """Why a scorer cannot measure anything; empty if it can.

    Of up to 20 problems it is asked about the known answer, about `DECOYS`, and about another problem's answer. It may
    be mistaken about the known answer, and about each decoy, in a tenth of them; a decoy that is the known answer, or
    the same number, is not asked there. Another problem's answer differs: puzzles have many solutions, and a small one
    may share them, so that one is refused only where it is right for most problems, and two at least. Of the 96
    scorers of reasoning-gym 0.1.25 that run no answers, three are refused, with 18 or more of 20; of all others one
    calls one such answer right.

    Args:
        known: the answer of each problem, by its id; None where only the scorer knows.
        is_right: whether it calls the answer to the problem of this id right.
    """
    asked = {problem: known[problem] for problem in list(known)[:: -(-len(known) // _ASKED) or 1]}
    answers = {problem: answer for problem, answer in asked.items() if answer}
    wrong = sum(not is_right(problem, answer) for problem, answer in answers.items())
    if wrong > _MISTAKEN * len(answers):
        return f"its scorer calls {wrong} of {len(answers)} right answers wrong"
    for decoy in DECOYS:
        unlike = [problem for problem, answer in asked.items() if not _same(decoy, answer)]
        right = sum(is_right(problem, decoy) for problem in unlike)
        if right > _MISTAKEN * len(unlike):
            return f"its scorer calls {decoy!r} right in {right} of {len(unlike)} problems where it is wrong"
    others = {problem: _another(answer, answers.values()) for problem, answer in answers.items()}
    unlike = {problem: other for problem, other in others.items() if other}
    right = sum(is_right(problem, other) for problem, other in unlike.items())
    if right > max(1, len(unlike) / 2):
        return f"its scorer calls another problem's answer right in {right} of {len(unlike)} problems"
    return ""


def _another(answer: str, answers: Iterable[str]) -> str | None:
    return next((other for other in answers if not _same(other, answer)), None)


def _same(text: str, answer: str | None) -> bool:
    if answer is None:
        return False
    number, known = final_number(text), final_number(answer)
    return text.strip().casefold() == answer.strip().casefold() or bool(
        number and known and number.value == known.value
    )
