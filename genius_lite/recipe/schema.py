"""The recipe's JSON Schema, from its types: for editors, for the reference, and for what a message says to write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from genius_lite.recipe import Recipe

Schema = dict[str, Any]


def editor_schema() -> Schema:
    """Return the JSON Schema of a recipe, or of a part of one with `extends`. Editors know Draft 7 best."""
    schema = deepcopy(_schema())
    properties, sections = schema["properties"], schema["$defs"]
    named = sections["TaskSource"].pop("required")
    sections["TaskSource"]["anyOf"] = [{"required": named}, {"required": ["benchmark"]}]  # whose source is known
    for name in Recipe.section_names():  # a section of comments only is null, and means its defaults
        section = properties[name]
        kinds = section.pop("anyOf", None) or [{"$ref": section.pop("$ref")}]
        properties[name] = {"anyOf": [*kinds, {"type": "null"}], **section}
    extends = {"type": "string", "description": "Another recipe, from which all is taken that this one does not say"}
    # What a recipe must say may stand in the one that it extends.
    wanted = {name: {"required": sections[name.title()].pop("required")} for name in ("model", "queries")}
    del schema["required"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "title": "genius-lite recipe",
        "properties": {"extends": extends, **properties},
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": list(wanted), "properties": wanted},
    }


def at(where: tuple[str, ...]) -> Schema:
    """Return the schema of the value that keys lead to, its reference resolved; empty where anything goes.

    Of a section that may be written otherwise too (null, auto) it has the section's keys beside the alternatives.
    """
    node = _schema()
    for part in where:
        inner = [kind for kind in _kinds(node) if "properties" in kind or "items" in kind]
        if not inner:
            return {}
        node = inner[0].get("properties", {}).get(part) or inner[0].get("items", {})
    sections = [kind for kind in _kinds(node) if "properties" in kind]
    return {**sections[0], **_resolved(node)} if sections else _resolved(node)


def keys(where: tuple[str, ...]) -> list[str]:
    """Return the keys that a section knows."""
    return list(at(where).get("properties", {}))


def phrase(node: Schema, quote: Callable[[str], str] = str) -> str:
    """Say what a value is, as "a whole number of at least 1, or auto"; `quote` marks what is written as it is."""
    *others, last = [word for kind in _kinds(node) for word in _words(kind, quote)]
    return f"{', '.join(others)}{',' if ' ' in others[-1] else ''} or {last}" if others else last


def choices(node: Schema) -> list[str]:
    """Return the words that may be written there."""
    return [str(word) for kind in _kinds(node) for word in kind.get("enum", [kind["const"]] if "const" in kind else [])]


def is_text(node: Schema) -> bool:
    """Return whether text may be written there, and nothing else but null."""
    return not choices(node) and all(kind.get("type") in ("string", "null") for kind in _kinds(node))


def example(node: Schema) -> str:
    """Return what may be written there: an example, the default, or the first key that has one; "" if none is known."""
    if "examples" in node:
        return plain(node["examples"][0])
    for kind in _kinds(node):
        if "properties" in kind:
            known = {key: example(kind["properties"][key]) for key in [*kind.get("required", ()), *kind["properties"]]}
            return next((f"{{{key}: {text}}}" for key, text in known.items() if text), "")
        if "items" in kind and (item := example(kind["items"]) or next(iter(choices(kind["items"])), "")):
            return f"[{item}]"
    return plain(node["default"]) if node.get("default") is not None else ""


def plain(value: Any) -> str:
    """Return a value as a recipe writes it in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    return value if isinstance(value, str) else json.dumps(value).replace("e-0", "e-")


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
    """Return the alternatives of a schema, references resolved."""
    node = _resolved(node)
    return [_resolved(kind) for kind in node["anyOf"]] if "anyOf" in node else [node]


def _resolved(node: Schema) -> Schema:
    if "$ref" not in node:
        return node
    return {**_schema()["$defs"][node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}


class _Untitled(GenerateJsonSchema):
    """pydantic's titles repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def _schema() -> Schema:
    return Recipe.model_json_schema(schema_generator=_Untitled)
