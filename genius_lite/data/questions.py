"""From a row to a question: a column of text, several by a template, or the last turn of a conversation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from string import Formatter
from typing import Any, NamedTuple, TypeGuard

from genius_lite.data.rows import Columns
from genius_lite.data.templates import Message
from genius_lite.errors import UserError
from genius_lite.recipe import columns_of
from genius_lite.records import query_id
from genius_lite.text import brief

COLUMN = "prompt"
"""The column that is asked for where nobody says which: where it lacks, a row's form is recognized."""
CONVERSATIONS = {"messages": "OpenAI", "conversations": "ShareGPT", "conversation": "ShareGPT"}
"""Columns that hold a conversation, and whose form that is."""
_SYSTEM, _INSTRUCTION = "system", "instruction"
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("system", "developer"), _SYSTEM),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
}
_LONGEST = 200_000  # characters: some 50,000 tokens, and up to a second of tokenizing


class Question(NamedTuple):
    """What is asked; what was said before it, oldest first; and the form of the row, where that was recognized."""

    text: str
    before: tuple[Message, ...] = ()
    form: str = ""

    @property
    def id(self) -> str:
        """Identify it by all that is asked."""
        return query_id(json.dumps([*self.before, self.text]) if self.before else self.text)


def columns_for(column: str, template: str | None = None) -> list[Columns]:
    """Return the columns that a question is made of, the likeliest first."""
    if template:
        return [Columns(tuple(columns_of(template)), help="name others in queries.prompt")]
    forms = [Columns((name,), (_SYSTEM,)) for name in CONVERSATIONS] + [Columns((_INSTRUCTION,), ("input", _SYSTEM))]
    if column != COLUMN:
        return [next((form for form in forms if form.needed == (column,)), Columns((column,)))]
    return [Columns((column,)), *forms]


def question_of(row: Mapping[str, Any] | str, column: str, template: str | None = None) -> Question:
    """Read the question of a row that has the columns for it.

    Raises:
        UserError: it holds no text, or what no model can be asked; or no user speaks in a conversation.
    """
    if isinstance(row, str):
        return Question(checked(row))
    if template:
        return Question(checked(_filled(row, template)))
    if column in row and column not in (*CONVERSATIONS, _INSTRUCTION):
        if _is_conversation(row[column]):
            return _last_turn(row[column], column, None)
        return Question(checked(_text(row[column], column)))
    if name := next((name for name in CONVERSATIONS if name in row and column in (name, COLUMN)), None):
        return _last_turn(row[name], name, row.get(_SYSTEM))
    given = _text(row["input"], "input") if row.get("input") else ""
    text = "\n\n".join(part for part in (_text(row[_INSTRUCTION], _INSTRUCTION), given) if part.strip())
    return Question(checked(text), _opening(row.get(_SYSTEM)), "Alpaca (`instruction` and `input`)")


def _filled(row: Mapping[str, Any], template: str) -> str:
    parts = Formatter().parse(template)
    return "".join(literal + (_text(row[name], name, numbers=True) if name else "") for literal, name, _, _ in parts)


def _text(value: Any, name: str, *, numbers: bool = False) -> str:
    if isinstance(value, str):
        return value
    if numbers and is_number(value):
        return written(value)
    raise UserError(f"`{name}` is {brief(repr(value))}, not text")


def is_number(value: Any) -> TypeGuard[float | Decimal]:
    """Say whether a value is a number, and neither true or false nor what tables have where there is none (NaN)."""
    if isinstance(value, float | Decimal):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def written(number: float | Decimal) -> str:
    """Write a number as a person does: pandas makes 5.0 of each 5 in a column in which one is missing."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _opening(system: Any) -> tuple[Message, ...]:
    if system is None or (isinstance(system, str) and not system.strip()):
        return ()
    return ({"role": _SYSTEM, "content": _text(system, _SYSTEM)},)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _last_turn(turns: Any, name: str, system: Any) -> Question:
    """Read a conversation up to the last turn of its user; in a table it stands as JSON."""
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise UserError(f"`{name}` is {brief(repr(turns))}, no conversation in JSON") from None
    if not _is_conversation(turns):
        raise UserError(f"`{name}` is {brief(repr(turns))}, no list of messages")
    last = max((at for at, turn in enumerate(turns) if _role(turn) == "user"), default=len(turns))
    messages = [_message(turn, name) for turn in turns[: last + 1]]  # what follows, as calls of tools, is not read
    if last == len(turns):
        raise UserError(f"`{name}` has no message of a user")
    opening = () if messages[0]["role"] == _SYSTEM else _opening(system)
    before = tuple(message for message in messages[:last] if message["content"].strip())
    for message in (*opening, *before):
        checked(message["content"])
    kind = CONVERSATIONS.get(name, "OpenAI")
    return Question(checked(messages[last]["content"]), (*opening, *before), f"conversations ({kind}'s `{name}`)")


def _role(turn: Mapping[str, Any]) -> str | None:
    return _ROLES.get(str(turn.get("role", turn.get("from"))).casefold())


def _message(turn: Mapping[str, Any], name: str) -> Message:
    role = _role(turn)
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not role or not isinstance(content, str):
        speaker = brief(str(turn.get("role", turn.get("from"))))
        raise UserError(f"`{name}` has a message of `{speaker}` that is {brief(repr(content))}")
    return {"role": role, "content": content}


def checked(question: str) -> str:
    """Return a text that a model can be asked; what none can is refused before time is spent on it.

    Raises:
        UserError: it is too long, or no text (NULs; half characters, which JSON can write); its place is not told.
    """
    if len(question) > _LONGEST:
        raise UserError(f"a question of {len(question)} characters; {_LONGEST} is the most, leave it out")
    if question.count("\0") > len(question) // 3:
        raise UserError("NUL after NUL, as in UTF-16 without its mark; save the file as UTF-8")
    try:
        question.encode()
    except UnicodeEncodeError as e:
        half = ord(question[e.start])
        if 0xDC80 <= half <= 0xDCFF:  # what `files.decoded` makes of such bytes
            raise UserError(
                f"the byte {half - 0xDC00:02X} is no UTF-8 where it stands; save the file as UTF-8"
            ) from None
        raise UserError(f"U+{half:04X} is half a character, which no text can hold; write it as UTF-8") from None
    return question
