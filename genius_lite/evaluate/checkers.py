"""Is a response right? Each checker finds the final answer in free text and compares it with the known one.

What follows a thought alone is looked at. Marked answers (`answers.marked`: "the answer is", "Antwort:", "答案是") come
first; without a mark counts the last number (numeric), the last mention of a letter (choice), or the whole response
(exact). docs/answers.md tells all that is read, and how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from genius_lite.data import thoughts
from genius_lite.errors import UserError
from genius_lite.evaluate.answers import (
    WORDS,
    bare,
    count_words,
    final_number,
    first_sentence,
    is_several,
    marked,
    one_form,
    stated_number,
    without_markdown,
    without_verb,
)
from genius_lite.evaluate.choices import LETTERS, UNLIKE, final_choice, starting_letter
from genius_lite.evaluate.numbers import plain, unit_number
from genius_lite.evaluate.scoring import Verdict
from genius_lite.evaluate.words import every
from genius_lite.recipe import AnswerKind, Check, CheckOptions

_NO_OPTIONS = CheckOptions()
_Judged = tuple[bool, str | None]  # whether a response is right, and the answer that it gives, if any

_SECONDS = 1  # what a regular expression may take of a response
_NOT_ELSE = re.compile(rf"(?<=\S)(?:\s*[,;(]|\s+{every('both')})\s*{every('unlike')}.*", re.IGNORECASE | re.DOTALL)
_AMBIGUOUS = re.compile(r"\D*[0-9]+,(?![0-9]{3}(?![0-9]))[0-9]+\D*")


def extract_answer(response: str) -> str | None:
    """Return the final answer of a response, such that equal answers are equal strings; None if none is found.

    The last marked answer counts: its number if it is one with a unit at most, its text if that is short, the number
    that it states otherwise. Without a mark a response is an answer only where it is nothing else: a few words with one
    number ("so 1000 in all"), or what such words equal ("2 + 3 = 5"), or a single word. "1,000.0", "$1000" and "1e3"
    are all "1000", "(b)" and "B) Paris" are "B", and "Yes" is "yes".
    """
    segments = [*marked(response)]
    for segment in segments:
        text = without_verb(bare(first_sentence(segment)))
        words = count_words(text)
        number = unit_number(_NOT_ELSE.sub("", text)) or (stated_number(text) if words > WORDS else None)
        if number:
            return number.canonical
        if 0 < words <= WORDS:
            return _text_answer(text)
    words = bare(response).split()
    # A mark that holds nothing answers nothing, nor does "it is not 5"; a single "no" does.
    if segments or count_words(response) > WORDS or (len(words) > 1 and UNLIKE.search(response)):
        return None
    number = unit_number(without_markdown(response).rpartition("=")[2])
    return number.canonical if number else _text_answer(words[0]) if len(words) == 1 else _letter_answer(response)


def _text_answer(text: str) -> str:
    return _letter_answer(text) or one_form(text, ignore_case=True)


def _letter_answer(text: str) -> str | None:
    letter = starting_letter(plain(text), LETTERS, apart=True)
    return letter if letter and letter in LETTERS else None


def judge(
    kind: Check, response: str, answer: str, options: CheckOptions = _NO_OPTIONS, choices: Sequence[str] = ()
) -> Verdict:
    """Judge a response by the answer that it gives, which a vote counts; a pattern that takes over a second is wrong.

    math-verify is not asked here, as nothing would bound its time: `scoring.Scorer`.

    Args:
        answer: the known one.
        options: told in the recipe's reference.
        choices: texts of the options, if there are some: only their letters count then, and their texts do too.

    Raises:
        UserError: the known answer is not of this kind, or the pattern is wrong.
    """
    try:
        right, given = _CHECKERS[kind](thoughts.read(response).answer, answer, options, choices)
    except TimeoutError:
        return Verdict(0.0, timed_out=True)
    return Verdict(float(right), given)


def read_answer(kind: AnswerKind, response: str) -> str | None:
    """Return what a vote counts of a response to a question whose answer is not known; None if it gives none."""
    response = thoughts.read(response).answer
    if kind == "numeric":
        number = final_number(response)
        return str(number.value) if number else None
    return final_choice(response) if kind == "choice" else extract_answer(response)


def _exact(response: str, answer: str, options: CheckOptions, choices: Sequence[str]) -> _Judged:
    texts = _texts(response)
    right = one_form(answer, options.ignore_case) in (one_form(text, options.ignore_case) for text in texts)
    whole, sentence = texts[-2:]
    return right, one_form(sentence if count_words(sentence) <= WORDS else whole, options.ignore_case) or None


def _texts(response: str) -> list[str]:
    """List what may be meant, in shorter and shorter forms."""
    segment = next(marked(response), response)
    sentence = bare(first_sentence(segment))
    texts = [response, segment, sentence]
    if segment is not response:
        segment, sentence = without_verb(bare(segment)), without_verb(sentence)
    return [*texts, bare(segment), sentence]


def _numeric(response: str, answer: str, options: CheckOptions, choices: Sequence[str]) -> _Judged:
    """Compare numbers, which may be apart by `tolerance` times the answer, which may be a worked solution.

    50% equals 50, and 0.5 as well, and 5 million equals 5, as what is asked for may be a percentage or millions.
    """
    if options.decimal == "." and _AMBIGUOUS.fullmatch(answer):
        raise UserError(f"the answer {answer!r:.60} has a decimal comma; write options: {{decimal: ','}} for this task")
    if is_several(answer, options.decimal):
        raise UserError(f"the answer {answer!r:.60} holds several numbers; write the one that is right")
    right, given = final_number(answer, options.decimal), final_number(response, options.decimal)
    if right is None:
        raise UserError(f"the answer {answer!r:.60} holds no number; give one, or take another checker than numeric")
    if given is None:
        return False, None
    readings = [(given.value, right.value)]
    if given.percent != right.percent:
        readings.append((given.value / (100 if given.percent else 1), right.value / (100 if right.percent else 1)))
    if (given.scale == 1) != (right.scale == 1):
        readings.append((given.value / given.scale, right.value / right.scale))
    return any(abs(a - b) <= Fraction(options.tolerance) * abs(b) for a, b in readings), str(given.value)


def _choice(response: str, answer: str, options: CheckOptions, choices: Sequence[str]) -> _Judged:
    letters = LETTERS[: len(choices)] if choices else LETTERS
    if len(answer) != 1 or answer not in letters:
        raise UserError(f"the answer {answer!r:.60} is not one of the letters {letters[0]} to {letters[-1]}")
    given = final_choice(response, letters, choices)
    return given == answer, given


def _regex(response: str, answer: str, options: CheckOptions, choices: Sequence[str]) -> _Judged:
    """Compare the last match of `pattern`, or its `group` (the first unless given), as exact does."""
    # Unlike `re`, this package can stop a pattern that backtracks without end.
    import regex

    pattern, group = options.pattern, options.group
    if not pattern:
        raise UserError("the regex checker needs a pattern")
    try:
        compiled = regex.compile(pattern)
        found = list(compiled.finditer(response, timeout=_SECONDS))
        if group is None:
            group = min(compiled.groups, 1)
        elif group not in compiled.groupindex and group not in range(compiled.groups + 1):
            raise UserError(f"the pattern {pattern!r:.60} has no group {group!r}")
    except (regex.error, ValueError, OverflowError, RecursionError) as e:
        raise UserError(f"the pattern {pattern!r:.60} is not a regular expression: {e}") from None
    text = found[-1][group] if found else None
    given = None if text is None else one_form(text, options.ignore_case)
    return given == one_form(answer, options.ignore_case), given


_CHECKERS: dict[Check, Callable[[str, str, CheckOptions, Sequence[str]], _Judged]] = {
    "exact": _exact,
    "numeric": _numeric,
    "choice": _choice,
    "regex": _regex,
}
"""Each is given the response, the known answer, and the rest as in `judge`.

Another checker is a function here, and its name in the recipe's `Check`: recipes are read without this file's patterns.
"""
