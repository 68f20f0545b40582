"""Is a response right? Each checker finds the final answer in free text and compares it with the known one.

Marked answers (`answers.marked`) come first; without a mark counts the last number (numeric), the last mention of a
letter (choice), or the whole response (exact). A mark that holds nothing of the checker's kind is passed over. Number
words ("seven") and decimal commas ("3,5") are not read as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from genius_lite.errors import UserError
from genius_lite.evaluate.answers import (
    bare,
    final_number,
    first_sentence,
    marked,
    stated_number,
    unit_number,
    without_markdown,
)
from genius_lite.recipe import Check, CheckOptions

DEFAULT_OPTIONS = CheckOptions()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_SECONDS = 1  # what a regular expression may take of a response
_WORDS = 5  # a longer answer is prose
_LEAD = r"(?:[\s*_`\"'$:=]|\\[a-z]+(?=\{))*+(?:(?:option|choice|letter|answer)\b[\s*_`:]*+)?"
_START = re.compile(
    rf"(?i:{_LEAD})(?P<open>[(\[{{]?)[\s*_]*+(?P<letter>[A-Za-z])(?![\w'’])(?P<rest>.*)",
    re.DOTALL,
)
_HEDGE = re.compile(r"[\s)\]}*_]*+(?:,|/|&|and\b|or\b)\s*(?:option\s*)?[(\[*]*(?P<other>[A-Za-z])(?![\w'’])")
_MENTION = re.compile(
    r"\(([A-Z])\)|\*\*\(?([A-Z])(?:[).:]|\*\*)|\b(?i:option|choice)\s+\W{0,3}([A-Z])\b"
    r"|^[ \t]*([A-Z])[.):](?=\s)|^[ \t*_]*([A-Z])[ \t*_.]*$",
    re.MULTILINE,
)


def extract_answer(response: str) -> str | None:
    """The final answer of a response, in a form that can be compared with another's; None if none is found.

    The last marked answer counts: its number if it is one with a unit at most, its text if that is short, the number
    that it states otherwise. Without a mark a response is an answer only where it is nothing else: a few words with one
    number ("so 1000 in all"), or what such words equal ("2 + 3 = 5"), or a single word. The last number of an open text
    may be anything, and responses that happen to share it do not agree. "1,000.0", "$1000" and "1e3" are all "1000".
    """
    for segment in marked(response):
        text = bare(first_sentence(segment))
        number = unit_number(text) or (stated_number(text) if len(text.split()) > _WORDS else None)
        if number:
            return number.canonical
        if 0 < len(text.split()) <= _WORDS:
            return " ".join(text.split())
    if len(response.split()) > _WORDS:
        return None
    number = unit_number(without_markdown(response).rpartition("=")[2])
    words = bare(response).split()
    return number.canonical if number else words[0] if len(words) == 1 else None


def final_choice(response: str, letters: str = LETTERS, choices: Sequence[str] = ()) -> str | None:
    r"""The letter that a response settles on, upper case, one of `letters`; None without one, or if it hedges (A or B).

    In this order: a marked answer that starts with a letter (`B`, `(B)`, `**B**`, `B) Paris`, `option B`, `\text{B}`)
    or is the text of a choice; a response that starts so with a letter set apart, or is such a text; the last mention,
    which is `(B)`, `**B**`, `option B`, `B)` or `B.` at the start of a line, or a letter alone on its line. Lower case
    counts in brackets, before `.`, `)` or `:`, and alone: "a dog" is not A.
    """
    by_text = {bare(choice).casefold(): letter for letter, choice in zip(letters, choices, strict=False)}
    for segment in marked(response):
        named = by_text.get(bare(segment).casefold()) or by_text.get(bare(first_sentence(segment)).casefold())
        if found := named or _starting_letter(segment, letters):
            return found if found in letters else None
    found = by_text.get(bare(response).casefold()) or _starting_letter(response, letters, apart=True)
    if found:
        return found if found in letters else None
    return _last_mention(response, letters)


def check(
    kind: Check,
    response: str,
    answer: str,
    options: CheckOptions = DEFAULT_OPTIONS,
    choices: Sequence[str] = (),
) -> float:
    """1.0 if the response's final answer is `answer`, else 0.0; its `options` are told in the recipe's reference.

    exact: the response, or its last marked answer, is the text of the answer; a run of white space is one space.
    numeric: equal, or apart by at most `tolerance` times the answer. 50% equals 50, and 0.5 as well. The answer may be
    a worked solution that ends in `#### 72`.
    choice: the answer is a letter. With `choices` only their letters count, and their texts do too.
    regex: the last match of `pattern`, or its `group` (the first unless given), compared as exact.
    math-verify is not asked here, as nothing would bound its time: `scoring.Scorer`.

    Raises:
        UserError: the answer is not of this kind, or the pattern is wrong.
        TimeoutError: the pattern takes over a second of this response.
    """
    match kind:
        case "exact":
            right = any(_equal(text, answer, options.ignore_case) for text in _texts(response))
        case "numeric":
            right = _same_number(response, answer, options.tolerance)
        case "choice":
            letters = LETTERS[: len(choices)] if choices else LETTERS
            if len(answer) != 1 or answer not in letters:
                raise UserError(f"the answer {answer!r:.60} is not one of the letters {letters[0]} to {letters[-1]}")
            right = final_choice(response, letters, choices) == answer
        case "regex":
            found = _last_match(response, options.pattern, options.group)
            right = found is not None and _equal(found, answer, options.ignore_case)
        case "math-verify":
            raise ValueError("math-verify is asked in a process of its own")
    return float(right)


def submitted(kind: Check, response: str, choices: Sequence[str] = ()) -> str | None:
    """The answer that a checker reads in a response, None if there is none: what a vote among responses counts."""
    match kind:
        case "numeric":
            number = final_number(response)
            return str(number.value) if number else None
        case "choice":
            return final_choice(response, LETTERS[: len(choices)] if choices else LETTERS, choices)
        case _:
            return extract_answer(response)


def _texts(response: str) -> Iterator[str]:
    segment = next(marked(response), response)
    yield from (response, segment, bare(segment), bare(first_sentence(segment)))


def _equal(text: str, answer: str, ignore_case: bool) -> bool:
    a, b = (" ".join(t.split()) for t in (text, answer))
    return a.casefold() == b.casefold() if ignore_case else a == b


def _same_number(response: str, answer: str, tolerance: float) -> bool:
    right, given = final_number(answer), final_number(response)
    if right is None:
        raise UserError(f"the answer {answer!r:.60} holds no number; give one, or take another checker than numeric")
    if given is None:
        return False
    readings = [(given.value, right.value)]
    if given.percent != right.percent:
        readings.append((given.value / (100 if given.percent else 1), right.value / (100 if right.percent else 1)))
    return any(abs(a - b) <= Fraction(tolerance) * abs(b) for a, b in readings)


def _starting_letter(text: str, letters: str, apart: bool = False) -> str | None:
    """The letter that a text starts with, "?" if it hedges; `apart`: only one that is set apart from what follows."""
    found = _START.match(text)
    if not found or found["letter"].upper() not in letters:
        return None
    rest = found["rest"].lstrip("*_`\"'$")
    is_apart = bool(found["open"] or not rest.strip() or rest[0] in ").:]},\r\n")
    if not is_apart and (apart or found["letter"].islower()):
        return None
    other = _HEDGE.match(rest)
    return "?" if other and other["other"] in letters else found["letter"].upper()


def _last_mention(text: str, letters: str) -> str | None:
    found = [(m.start(), m.end(), m[m.lastindex or 0]) for m in _MENTION.finditer(text)]
    found = [mention for mention in found if mention[2] in letters]
    if not found:
        return None
    between = text[found[-2][1] : found[-1][0]] if len(found) > 1 else ""
    return None if re.fullmatch(r"[\s*]*+(?:,|/|&|and|or)[\s*]*+", between) else found[-1][2]


def _last_match(response: str, pattern: str | None, group: int | str | None) -> str | None:
    # Unlike `re`, this package can stop a pattern that backtracks without end.
    import regex

    if not pattern:
        raise UserError("the regex checker needs a pattern")
    try:
        compiled = regex.compile(pattern)
        found = list(compiled.finditer(response, timeout=_SECONDS))
        if group is None:
            group = min(compiled.groups, 1)
        elif group not in compiled.groupindex and group not in range(compiled.groups + 1):
            raise UserError(f"the pattern {pattern!r:.60} has no group {group!r}")
        return found[-1][group] if found else None
    except (regex.error, ValueError, OverflowError, RecursionError) as e:
        raise UserError(f"the pattern {pattern!r:.60} is not a regular expression: {e}") from None
