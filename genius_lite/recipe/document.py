"""A recipe's YAML as plain data, with the line of every key; what of YAML could surprise is refused.

Read are mappings, lists and plain values. Tags, anchors, merge keys and second documents are refused, so that a file
says what it seems to say and cannot grow when it is read; dates, and `1:30`, are text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from genius_lite.errors import UserError
from genius_lite.recipe.yaml_faults import Refused, fault, invisible
from genius_lite.text import brief

Where = tuple[str, ...]
"""The keys that lead to a value; of a list's item its index."""
At = Callable[[int], str]
"""From the number of a line, first is 1, to its place (`r.yaml:7`)."""

_DEPTH = 16  # sections within sections; a recipe has four
_TEXT_ALL_THE_SAME = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "value", "merge")}


@dataclass(frozen=True)
class Document:
    """A recipe's plain data; where each of its keys stands (`r.yaml:7`); and its values as they are written."""

    data: dict[str, Any]
    places: dict[Where, str]
    written: dict[Where, str] = field(default_factory=dict)

    def over(self, other: Document) -> Document:
        """This document's keys laid over another's; sections are joined, lists and values replaced."""
        return Document(_laid(self.data, other.data), other.places | self.places, other.written | self.written)


def read_document(text: str, name: str) -> Document:
    """The document of a recipe file; `name` stands in the messages.

    Raises:
        UserError: it is no YAML, or no mapping, or repeats a key, or holds what is refused.
    """
    root = _compose(text, lambda line: f"{name}:{line}")
    if not isinstance(root, yaml.MappingNode):
        seen = "empty" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "plain text"
        line = root.start_mark.line + 1 if root else 1
        raise UserError(f"{name}:{line}: this is {seen}; a recipe is made of keys, and begins such as `model:`")
    document = Document({}, {(): f"{name}:1"})
    document.data.update(_plain(root, (), document, text, lambda line: f"{name}:{line}"))
    return document


def read_setting(setting: str) -> Document:
    """`foresight.beams=3` as a document; the value is YAML.

    Raises:
        UserError: it is not written so, or the value is no YAML.
    """
    key, equals, value = setting.partition("=")
    where, place = tuple(key.strip().split(".")), f"--set {brief(setting)}"
    if not equals or not all(where):
        raise UserError(f"{place}: write KEY=VALUE, such as foresight.beams=3")
    document = Document({}, {where[:n]: place for n in range(len(where) + 1)})
    node = _compose(value, lambda _: place)
    data: Any = _plain(node, where, document, value, lambda _: place) if node else None
    for part in reversed(where):
        data = {part: data}
    document.data.update(data)
    return document


class _Composer(yaml.SafeLoader):
    """PyYAML's own, without what is refused."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._refuse(
                f"`*{event.anchor}` would repeat another value; write it out, or put it in quotes if it is text"
            )
        if event.anchor:
            self._refuse(f"`&{event.anchor}` is not read; take it out, or put it in quotes if it is text")
        if getattr(event, "tag", None) not in (None, "!"):
            self._refuse("a word that starts with `!` is not read; take it out, or put it in quotes if it is text")
        if self.depth == _DEPTH:
            self._refuse(f"more than {_DEPTH} sections within each other; a recipe has four at most")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, problem: str) -> None:
        raise Refused(problem=problem, problem_mark=self.peek_event().start_mark)


def _compose(text: str, at: At) -> yaml.Node | None:
    """The only document of `text`, None if it is empty."""
    try:
        composer = _Composer(text)
        try:
            return composer.get_single_node()
        finally:
            composer.dispose()
    except yaml.MarkedYAMLError as e:
        line, meaning = fault(e)
        raise UserError(f"{at(line)}: {meaning}") from None
    except yaml.reader.ReaderError as e:
        line, meaning = invisible(e, text)
        raise UserError(f"{at(line)}: {meaning}") from None


def _plain(node: yaml.Node, where: Where, document: Document, text: str, at: At) -> Any:
    """The node's value, while noting the place of each key and refusing repeated ones."""
    document.places.setdefault(where, at(node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = at(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{place}: a key is one word; write KEY: VALUE")
            key = str(key_node.value)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{place}: `<<` is not read; write the keys out, or use `extends: OTHER.yaml`")
            if key in result:
                raise UserError(f"{place}: `{brief(key)}` stands twice in the same section; keep one")
            document.places[(*where, key)] = place
            result[key] = _plain(value_node, (*where, key), document, text, at)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*where, str(i)), document, text, at) for i, child in enumerate(node.value)]
    document.written[where] = text[node.start_mark.index : node.end_mark.index]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    """A YAML 1.1 scalar; also reads 2e-5 as the number that everyone means by it."""
    value = str(node.value)
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    if quoted or node.tag in _TEXT_ALL_THE_SAME or ":" in value:
        return value
    loader = yaml.SafeLoader("")
    try:
        found = loader.construct_object(node)
    except ValueError:  # more digits than Python reads
        return value
    finally:
        loader.dispose()
    return _number(found) if isinstance(found, str) else found


def _number(text: str) -> Any:
    """2e-5 and 1e3, which YAML 1.1 takes for text."""
    if text.lstrip("+-.")[:1] not in set("0123456789"):  # Python's `nan` and `infinity` are text here
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "." not in text else number


def _laid(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    joined = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        joined[key] = _laid(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return joined
