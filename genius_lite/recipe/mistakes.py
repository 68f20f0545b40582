"""What a wrong recipe is told: the place of the first mistake, what stands there, and what to write instead."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from genius_lite.recipe import schema
from genius_lite.recipe.document import Document, Where
from genius_lite.text import brief

_NEAR = 0.7  # similarity from which a word is taken for a misspelling
_SHORTHANDS: dict[Where, str] = {
    ("model",): "gguf",
    ("queries",): "source",
}  # sections that are often given as one value


def explain(error: ValidationError, document: Document) -> str:
    """One line for the first mistake: file, line, what is wrong, what to write."""
    order = {where: number for number, where in enumerate(document.places)}
    found = [(_where(e, document), e) for e in error.errors(include_url=False)]

    def rank(mistake: tuple[Where, Any]) -> tuple[bool, bool, int]:
        # What is missing is often there, misspelt. A list is wrong only where none of its items is.
        where, detail = mistake
        outer = any(other[: len(where)] == where != other for other, _ in found)
        return (detail["type"] == "missing", outer, order.get(where, len(order)))

    where, detail = min(found, key=rank)
    place, message = _told(where, detail, document)
    return f"{place}: {message}"


def _told(where: Where, detail: Any, document: Document) -> tuple[str, str]:
    place = next(document.places[where[:n]] for n in range(len(where), -1, -1) if where[:n] in document.places)
    name = brief(".".join(where))
    if detail["type"] == "extra_forbidden":
        return place, f"unknown key `{name}`; {_known(where)}"
    if detail["type"] == "missing":
        return place, f"`{name}` is missing; write {_example(where)}"
    if detail["type"] == "value_error":
        return _impossible(where, str(detail["ctx"]["error"]), document)
    return place, f"`{name}` is {_wrong(where, detail['input'], document)}"


def _where(detail: Any, document: Document) -> Where:
    """The keys that lead to a mistake: pydantic also names the type that it tried."""
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
    key, keys = where[-1], schema.keys(where[:-1])
    if near := _near(key, keys):
        return f"did you mean `{near}`?"
    if homes := schema.homes(key):
        return f"it belongs {f'under `{homes[0][0]}:`' if homes[0] else 'to the top level, not indented'}"
    return f"known keys: {', '.join(keys)}"


def _example(where: Where) -> str:
    node = schema.at(where)
    if "examples" in node:
        return f"`{where[-1]}: {node['examples'][0]}`, or what yours is called"
    inner = _SHORTHANDS[where]
    return f"`{where[-1]}: {{{inner}: {schema.at((*where, inner))['examples'][0]}}}`, or what yours is called"


def _impossible(where: Where, message: str, document: Document) -> tuple[str, str]:
    """Of settings that do not go together; the message starts with the key that it is about."""
    key, _, rest = message.partition(" ")
    full = where + tuple(key.split("."))
    place = next(document.places[full[:n]] for n in range(len(full), -1, -1) if full[:n] in document.places)
    return place, f"`{'.'.join(full)}` {rest}"


def _wrong(where: Where, value: Any, document: Document) -> str:
    """What stands there, and what to write instead."""
    node, written = schema.at(where), document.written.get(where, "")
    kinds, wanted = schema.kinds(node), _wanted(where)
    match value:
        case None:
            return f"empty; write {wanted}, or take the line out"
        case [] if "array" in kinds:
            return f"an empty list; write {wanted}"
        case dict() | list():
            return f"{'a list' if isinstance(value, list) else 'a section'}; {_structure(node, wanted)}"
        case str() if inner := _shorthand(where):
            text = f"{{{inner}: {brief(value)}}}"
            return f"'{brief(value)}'; write `{text if where[-1].isdecimal() else f'{where[-1]}: {text}'}`"
        case str() if "array" in kinds:
            inner = _shorthand((*where, "0"))
            return f"'{brief(value)}'; write a list, [{f'{{{inner}: {brief(value)}}}' if inner else brief(value)}]"
        case bool() if written.lower() not in ("true", "false", ""):
            instead = f"put it in quotes: '{written}'" if kinds <= {"string", "null"} else f"write {wanted}"
            return f"{written}, which YAML reads as {str(value).lower()}; {instead}"
        case bool() | int() | float() if kinds <= {"string", "null"} and not schema.choices(node):
            return f"{_shown(value, written)}, and has to be text; put it in quotes: '{written or value}'"
        case "":
            return f"empty; write {wanted}"
        case str() if written[:1] in ("'", '"') and _is_of(value, kinds):
            return f"{written}, which is text; take the quotes off"
        case str() if near := _near(value, schema.choices(node)):
            return f"'{brief(value)}'; did you mean {near}?"
    return f"{_shown(value, written)}; write {wanted}"


def _wanted(where: Where) -> str:
    """What to write, in words; of a section its first keys."""
    node = schema.at(where)
    if "properties" not in node:
        return schema.phrase(node)
    keys = ", ".join(f"{key}: ..." for key in list(node["properties"])[:2])
    return f"`{where[-1]}: {{{keys}}}`{' or `sampler: auto`' if where == ('sampler',) else ''}"


def _structure(node: Any, wanted: str) -> str:
    if "properties" in node:
        return "write its keys below it, without `-`"
    return "write a list: `- ` before each item" if "array" in schema.kinds(node) else f"write {wanted}"


def _shorthand(where: Where) -> str | None:
    """The key that is meant where a section is given as one value."""
    return "source" if where[:-1] == ("evaluate", "tasks") else _SHORTHANDS.get(where)


def _near(word: str, words: list[str]) -> str | None:
    """The one of `words` that `word` is a misspelling of, if it is."""
    folded = {known.casefold(): known for known in words}
    found = difflib.get_close_matches(word.casefold(), list(folded), n=1, cutoff=_NEAR)
    return folded[found[0]] if found else None


def _is_of(text: str, kinds: set[str]) -> bool:
    """Whether quotes alone make a number, true or false into text."""
    if "boolean" in kinds and text.lower() in ("true", "false"):
        return True
    try:
        return bool(kinds & {"integer", "number"}) and float(text) is not None
    except ValueError:
        return False


def _shown(value: Any, written: str) -> str:
    if isinstance(value, str):
        return f"'{brief(value)}'"
    return brief(written) if written else str(value)
