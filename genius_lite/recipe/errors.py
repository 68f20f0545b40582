"""Say what is wrong with a recipe: where, what stands there, and what to write instead, as its JSON Schema has it."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from genius_lite.recipe import schema
from genius_lite.recipe.document import Document, Where
from genius_lite.text import brief, visible

_NEAR = 0.7  # similarity from which a word is taken for a misspelling


def explain(error: ValidationError, document: Document) -> str:
    """Return one line for the first mistake: file, line, what is wrong, what to write."""
    order = {where: number for number, where in enumerate(document.places)}
    found: list[tuple[Where, Any]] = [(_where(e, document), e) for e in error.errors(include_url=False)]

    def rank(mistake: tuple[Where, Any]) -> tuple[bool, bool, int]:
        # What is missing is often there, misspelt. A list is wrong only where none of its items is.
        where, detail = mistake
        outer = any(other[: len(where)] == where != other for other, _ in found)
        return (detail["type"] == "missing", outer, order.get(where, len(order)))

    where, detail = min(found, key=rank)
    if detail["type"] == "value_error":  # of a section: the message starts with the key that it is about
        key, _, message = str(detail["ctx"]["error"]).partition(" ")
        where, message = (*where, *key.split(".")), visible(message)
    elif detail["type"] == "path":
        message = visible("is {path}, which {why}".format_map(detail["ctx"]))
    elif detail["type"] == "large":
        message = f"is {brief(document.written.get(where, ''))}, {detail['msg']}"
    elif detail["type"] == "missing":
        message = f"is missing; write `{where[-1]}: {schema.example(schema.at(where))}`, or what yours is called"
    elif detail["type"] == "extra_forbidden":
        message = f"is an unknown key; {_known(where)}"
    else:
        message = f"is {_wrong(where, detail['input'], document.written.get(where, ''))}"
    return f"{document.place(where)}: `{brief('.'.join(where))}` {message}"


def _where(detail: Any, document: Document) -> Where:
    """Return the keys that lead to a mistake: pydantic also names the type that it tried."""
    where: list[str] = []
    value: Any = document.data
    for part in detail["loc"]:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
        elif detail["type"] != "missing":
            continue
        where.append(str(part))
    return tuple(where)


def _known(where: Where) -> str:
    """Say which key may be meant: a similar one, or one of another section."""
    key, keys = where[-1], schema.keys(where[:-1])
    if near := _near(key, keys):
        return f"did you mean `{near}`?"
    homes = [name for name in schema.keys(()) if key in schema.keys((name,))]
    if key in schema.keys(()):
        return "it belongs to the top level, not indented"
    return f"it belongs under `{homes[0]}:`" if homes else f"known keys: {', '.join(keys)}"


def _wrong(where: Where, value: Any, written: str) -> str:
    """Say what stands there, and what to write instead."""
    node, choices = schema.at(where), schema.choices(schema.at(where))
    kind = {list: "a list", dict: "a section"}.get(type(value))
    shown = kind if kind and value else f"an empty {kind[2:]}" if kind else brief(written) or "empty"
    if isinstance(value, str) and (near := _near(value, choices)):
        return f"{shown}; did you mean {near}?"
    if isinstance(value, bool | int | float) and schema.is_text(node):
        return f"{shown}; to be text it needs quotes: '{shown}'"
    example, key = schema.example(node), "" if where[-1].isdecimal() else f"{where[-1]}: "
    such = f", such as `{key}{example}`" if example and example not in choices else ""
    return f"{shown}; write {schema.phrase(node)}{such}"


def _near(word: str, words: list[str]) -> str | None:
    """Return the one of `words` that `word` is a misspelling of, if it is."""
    folded = {known.casefold(): known for known in words}
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=_NEAR)
    return folded[found[0]] if found else None
