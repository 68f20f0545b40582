"""Options of a problem, and which of them an answer means: its label, its text or its number."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from genius_lite.errors import UserError
from genius_lite.evaluate.letters import LETTERS
from genius_lite.text import brief


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
            named = [] if self.labels else [*LETTERS[:count]]
            begins = () if self.labels else (0, 1) if first is None else (first,)
            meant = {at for at, text in enumerate(self.texts) if text.strip() == wanted}
            meant |= {at for at, letter in enumerate(named) if letter == wanted.upper()}
            meant |= {number - begin for begin in begins if number is not None and 0 <= number - begin < count}
        if len(meant) != 1:
            wrong = "more than one" if meant else "none"
            counted = "" if first is None else f", counted from {first}"
            raise UserError(
                f"the answer {known!r:.60} is {wrong} of the {count} options; give the letter, or the number{counted}"
            )
        return LETTERS[meant.pop()]


def read_options(value: Any, column: str) -> Options:
    """Read a row's options: a list of texts, or texts and labels: a list of both, two lists, or a text by each label.

    In a table they are JSON.

    Raises:
        UserError: it is nothing of that, or too few or too many.
    """
    found, labels = value, ()
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            found = value
    if isinstance(found, list) and found and all(isinstance(option, dict) for option in found):
        found = {name: [option.get(name) for option in found] for name in ("text", "label")}
    if isinstance(found, dict) and found and all(isinstance(text, str) for text in found.values()):
        found = {"text": [*found.values()], "label": [*found]}
    if isinstance(found, dict):
        found, labels = found.get("text"), (*(str(label).strip() for label in found.get("label") or ()),)
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
        name: of the problems, for an error.

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
