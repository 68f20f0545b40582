"""Options of a problem: which of them an answer means, by label, text or number, and which a response settles on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from genius_lite.errors import UserError
from genius_lite.evaluate.answers import bare, first_sentence, marked, one_form, without_verb
from genius_lite.evaluate.numbers import plain
from genius_lite.evaluate.words import WORD, every
from genius_lite.text import brief

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_APART = rf"(?!{WORD}|')"
_NAMED = rf"(?:{every('option')}|{every('answer')})"
# "the option B", "la C", "l'option C"; an article before anything else may be the letter itself: a, l, o.
_ARTICLE = rf"(?:{every('article')}['\u0020]\s*(?={_NAMED}|[(\[*]*[A-Za-z]{_APART}))?"
_MARKUP = r"(?:[\s*_`\"'$:=]|\\[a-z]+(?=\{))*+"
_LEAD = rf"{_MARKUP}(?:{every('adverb')},?{_MARKUP})?{_ARTICLE}(?:{_NAMED}[\s*_`:]*+)?"
_START = re.compile(
    rf"(?i:{_LEAD})(?P<open>[(\[{{]?)[\s*_]*+(?P<letter>[A-Za-z]){_APART}(?P<rest>.*)",
    re.DOTALL,
)
_OR = rf"(?:(?:[,、/&]\s*)?{every('either', 'both')}(?:[\s*_]*{every('maybe')})?|[,、/&])"
_HEDGE = re.compile(rf"[\s()\]}}*_]*+{_OR}\s*(?:{every('option')}\s*)?[(\[*]*(?P<other>[A-Za-z]){_APART}")
_BETWEEN = re.compile(rf"[\s*(]*+{_OR}[\s*]*+")
_MENTION = re.compile(
    rf"\(([A-Z])\)|\*\*\(?([A-Z])(?:[).:]|\*\*)|(?i:{every('option')})\s*\W{{0,3}}([A-Z]){_APART}"
    r"|^[ \t]*([A-Z])[.):](?=\s)|^[ \t*_]*([A-Z])[ \t*_.。]*$",
    re.MULTILINE,
)
_OPTION = re.compile(r"^[ \t]*(?:\*\*)?\(?([A-Z])[.):](?:\*\*)?[ \t]+[^\s*]", re.MULTILINE)  # and a text behind it
_AT_END = re.compile(rf"(?<!{WORD})(?<!['-])([A-Z])$")
_OR_BEFORE = re.compile(rf"(?<!{WORD})[A-Z][)\]*_,.;\s]*?(?i:{_BETWEEN.pattern})[(\[*]*+$")
UNLIKE = re.compile(every("unlike"), re.IGNORECASE)
_DENIED = re.compile(rf"{every('unlike')}\s*$", re.IGNORECASE)
_NEAR = 14  # characters: "n'est pas (C)"
_BEFORE = 48  # "I think it is A, or possibly B"


class Options(NamedTuple):
    """Their texts, in order, and the labels of their own that they may have, as ARC's."""

    texts: list[str]
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line for each, with its letter."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False))

    def letter(self, known: str | float, first: int | None) -> str:
        """Return the letter of the right option.

        Args:
            first: the number of the first one; None where that is not known, so that any may be meant.

        Raises:
            UserError: it is none of them, or may be more than one.
        """
        count, number = len(self.texts), number_of(known)
        wanted = str(known).strip() if isinstance(known, str) or number is None else str(number)
        meant = {at for at, label in enumerate(self.labels) if label == wanted}
        if not meant:
            meant = {at for at, text in enumerate(self.texts) if text.strip() == wanted}
            if not self.labels:
                meant |= {at for at, letter in enumerate(LETTERS[:count]) if letter == wanted.upper()}
                begins = (0, 1) if first is None else (first,)
                meant |= {number - begin for begin in begins if number is not None and 0 <= number - begin < count}
        if len(meant) != 1:
            wrong = "more than one" if meant else "none"
            counted = "" if first is None else f", counted from {first}"
            told = f"is {wrong} of the {count} options; give the letter, or the number{counted}"
            raise UserError(f"the answer {known!r:.60} {told}")
        return LETTERS[meant.pop()]


def read_options(value: Any, column: str) -> Options:
    """Read a row's options: a list of texts, or texts and labels: a list of both, two lists, or a text by each label.

    In a table they are JSON.

    Raises:
        UserError: it is nothing of that, or too few or too many.
    """
    found, labels = value, ()
    if isinstance(found, str):
        with suppress(ValueError, RecursionError):
            found = json.loads(found)
    if isinstance(found, list) and found and all(isinstance(option, dict) for option in found):
        labelled = [option["label"] for option in found if option.get("label") is not None]
        found = {"text": [option.get("text") for option in found], "label": labelled}
    if isinstance(found, dict) and found and all(isinstance(text, str) for text in found.values()):
        found = {"text": [*found.values()], "label": [*found]}
    if isinstance(found, dict):
        found, given = found.get("text"), found.get("label")
        given = given if isinstance(given, list) else [given]
        labels = tuple(str(label).strip() for label in given) if {*map(type, given)} != {type(None)} else ()
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UserError(f"`{column}` is {brief(repr(value))}, not a list of texts")
    if not 2 <= len(found) <= len(LETTERS):
        raise UserError(f"`{column}` has {len(found)} options; 2 to {len(LETTERS)} can be lettered")
    if labels and len({*labels}) != len(found):
        raise UserError(f"`{column}` has {len(found)} options, and other labels: {brief(', '.join(labels))}")
    return Options(found, labels)


def number_of(known: str | float) -> int | None:
    """Return the number that an answer is, if it is a whole one."""
    if isinstance(known, str):
        return int(known) if known.strip().isdecimal() and len(known) < 9 else None
    return int(known) if known == int(known) else None


def counts_from(answers: Iterable[tuple[str | float, Options]], written: int | None, name: str) -> int | None:
    """Find whether the numbers of options begin at 0 or at 1, by those of all problems; None if there are none.

    Args:
        written: what the recipe says.

    Raises:
        UserError: as many of them would do from 0 as from 1.
    """
    numbered = [
        (number, len(options.texts))
        for known, options in answers
        if (number := number_of(known)) is not None
        and not (options.labels or str(known).strip() in options.texts)
        and 0 <= number <= len(options.texts)
    ]
    if written is not None or not numbered:
        return written
    wrong = [sum(not 0 <= number - first < count for number, count in numbered) for first in (0, 1)]
    if wrong[0] == wrong[1]:
        raise UserError(f"{name}: the answers number the options, from 0 or from 1; write count_from: 0 or 1")
    return wrong.index(min(wrong))


def final_choice(response: str, letters: str = LETTERS, choices: Sequence[str] = ()) -> str | None:
    r"""Return the letter that a response settles on, upper case, one of `letters`; None without one, or if it hedges.

    In this order: a marked answer that starts with a letter (`B`, `(B)`, `**B**`, `B) Paris`, `option B`, `la B`,
    `\text{B}`) or is the text of a choice; a response that starts so with a letter set apart, or is such a text; the
    last mention (`_MENTION`); a capital at the end of the response. Lower case counts in brackets, before `.`, `)` or
    `:`, and alone: "a dog" is not A. "A or B" is a hedge, and a list of the options chooses none of them.
    """
    response = plain(response)
    by_text = {_key(choice): letter for letter, choice in zip(letters, choices, strict=False) if _key(choice)}
    for segment in marked(response):
        sentence = first_sentence(segment)
        named = next(filter(None, map(by_text.get, map(_key, (segment, sentence, without_verb(bare(sentence)))))), None)
        if found := named or starting_letter(segment, letters):
            return found if found in letters else None
    found = by_text.get(_key(response))
    if not found and not _lists_options(response):
        found = starting_letter(response, letters, apart=True)
    if found:
        return found if found in letters else None
    return _last_mention(response, letters)


def _key(text: str) -> str:
    return one_form(bare(text), ignore_case=True)


def starting_letter(text: str, letters: str, apart: bool = False) -> str | None:
    """Return the letter that a text starts with, "?" if it hedges.

    Args:
        apart: only one that is set apart from what follows.
    """
    found = _START.match(text)
    if not found or found["letter"].upper() not in letters:
        return None
    rest = found["rest"].lstrip("*_`\"'$")
    is_apart = bool(found["open"] or not rest.strip() or rest[0] in ").:]},\r\n。、")
    if not is_apart and (apart or found["letter"].islower()):
        return None
    other = _HEDGE.match(rest)
    return "?" if other and other["other"] in letters else found["letter"].upper()


def _last_mention(text: str, letters: str) -> str | None:
    mentions = [m for m in _MENTION.finditer(text) if not _DENIED.search(text[max(m.start() - _NEAR, 0) : m.start()])]
    # Several letters in front of lines are the options, gone through one by one, and none of them is chosen so.
    lines = {m.start(1): m[1] for m in _OPTION.finditer(text) if m[1] in letters}
    listed = lines if len({*lines.values()}) > 1 else {}
    found = [(m.start(), m.end(), m[i]) for m in mentions if m.start(i := m.lastindex or 0) not in listed]
    found = [mention for mention in found if mention[2] in letters]
    if not found:
        end = _AT_END.search(text.rstrip(" \t\r\n.。!！)]*_`\"'")[-_BEFORE:])
        if not end or UNLIKE.search(end.string[-_NEAR:]) or _OR_BEFORE.search(end.string[: end.start()]):
            return None
        return end[1] if end[1] in letters else None
    between = text[found[-2][1] : found[-1][0]] if len(found) > 1 else ""
    return None if _BETWEEN.fullmatch(between) else found[-1][2]


def _lists_options(text: str) -> bool:
    """Say whether a text begins with the options, from the first one on: saying them again chooses none."""
    begins = _OPTION.match(text)
    return bool(begins and begins[1] == LETTERS[0]) and any(m[1] == LETTERS[1] for m in _OPTION.finditer(text))
