"""The recipe's JSON Schema, from its types: for editors, for the reference, and for what a message says to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from genius_lite.recipe import Recipe

Schema = dict[str, Any]


def editor_schema() -> Schema:
    """The JSON Schema of a recipe file: a recipe, or a part of one with `extends`. Editors know Draft 7 best."""
    schema = _without_titles(Recipe.model_json_schema())
    properties, sections = schema["properties"], schema["$defs"]
    for name, section in properties.items():
        if "$ref" in section:  # a section of comments only is null, and means its defaults
            kinds: list[Schema] = [{"$ref": section.pop("$ref")}, {"type": "null"}]
            properties[name] = {"anyOf": kinds + [{"const": "auto"}] * (name == "sampler"), **section}
    extends = {"type": "string", "description": "Another recipe, from which all is taken that this one does not say"}
    # What a recipe must say may stand in the one that it extends.
    wanted = {name: {"required": sections[name.title()].pop("required")} for name in ("model", "queries")}
    del schema["required"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "genius-lite recipe",
        **schema,
        "properties": {"extends": extends, **properties},
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": list(wanted), "properties": wanted},
    }


def at(where: tuple[str, ...]) -> Schema:
    """The schema of the value that keys lead to, its reference resolved; empty where anything goes.

    Of a section that may be left out (null) it is the section's.
    """
    node = _schema()
    for part in where:
        inner = [kind for kind in _kinds(node) if "properties" in kind or "items" in kind]
        if not inner:
            return {}
        node = inner[0].get("properties", {}).get(part) or inner[0].get("items", {})
    node = _resolved(node)
    sections = [kind for kind in _kinds(node) if "properties" in kind]
    return {**sections[0], **{k: v for k, v in node.items() if k != "anyOf"}} if sections else node


def keys(where: tuple[str, ...]) -> list[str]:
    """The keys that a section knows."""
    return list(at(where).get("properties", {}))


def homes(key: str) -> list[tuple[str, ...]]:
    """The sections that know a key: `()` is the top level."""
    found = [()] if key in keys(()) else []
    return found + [(name,) for name in keys(()) if key in keys((name,))]


def phrase(node: Schema, quote: Callable[[str], str] = str) -> str:
    """What a value is, as "a whole number of at least 1, or auto".

    Args:
        quote: marks words that are written as they are.
    """
    words = [word for kind in _kinds(node) for word in _words(kind, quote)]
    *others, last = words
    if not others:
        return last
    return f"{', '.join(others)}{',' if ' ' in others[-1] else ''} or {last}"


def choices(node: Schema) -> list[str]:
    """The words that may be written there."""
    return [str(word) for kind in _kinds(node) for word in kind.get("enum", [kind[c] for c in ("const",) if c in kind])]


def kinds(node: Schema) -> set[str]:
    """The JSON types that a value may have."""
    return {kind["type"] for kind in _kinds(node) if "type" in kind}


def _words(kind: Schema, quote: Callable[[str], str]) -> Iterator[str]:
    match kind:
        case {"enum": words}:
            yield from (quote(word) for word in words)
        case {"const": word}:
            yield quote(word)
        case {"type": "boolean"}:
            yield from (quote("true"), quote("false"))
        case {"type": "integer" | "number" as number}:
            yield f"{'a whole number' if number == 'integer' else 'a number'}{_bounds(kind)}"
        case {"type": "string"}:
            yield "text"
        case {"type": "array", "items": item}:
            yield f"a list of {'sections' if 'properties' in _resolved(item) else phrase(item, quote)}"
        case {"type": "null"}:
            yield quote("null")
        case {"properties": _}:
            yield "a section"
        case _:
            yield "KEY: VALUE pairs"


def _bounds(kind: Schema) -> str:
    if "minimum" in kind and "maximum" in kind:
        return f" from {kind['minimum']:g} to {kind['maximum']:g}"
    names = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{words} {kind[name]:g}" for name, words in names.items() if name in kind]
    return f" {' and '.join(bounds)}" if bounds else ""


def _kinds(node: Schema) -> list[Schema]:
    """The alternatives of a schema, references resolved."""
    node = _resolved(node)
    return [_resolved(kind) for kind in node["anyOf"]] if "anyOf" in node else [node]


def _resolved(node: Schema) -> Schema:
    if "$ref" not in node:
        return node
    return {**_schema()["$defs"][node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}


@cache
def _schema() -> Schema:
    return Recipe.model_json_schema()


def _without_titles(node: Any) -> Any:
    """pydantic's titles repeat the keys."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return node
