"""A recipe's YAML as plain data, with the line of every key; what of YAML could surprise is refused.

Read are mappings, lists and plain values, with the numbers of YAML 1.2. Tags, anchors, aliases and second documents are
refused, so that a file says what it seems to say and cannot grow when it is read; dates, `1:30` and `<<` are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from genius_lite.errors import UserError
from genius_lite.text import brief

Where = tuple[str, ...]
"""The keys that lead to a value; of a list's item its index."""
At = Callable[[int], str]
"""From the number of a line, first is 0, to its place (`r.yaml:7`)."""

_DEPTH = 16  # sections within sections; a recipe has five
_HINT = "indent with spaces; text with `: ` in it, or a sign before it, needs single quotes"


@dataclass(frozen=True)
class Document:
    """A recipe's plain data; where each of its keys stands (`r.yaml:7`); and its values as they are written."""

    data: dict[str, Any]
    places: dict[Where, str]
    written: dict[Where, str] = field(default_factory=dict)

    def place(self, where: Where) -> str:
        """Return where a key stands, or the section that it is missing from."""
        return next(self.places[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.places)

    def over(self, other: Document) -> Document:
        """Lay this document's keys over another's; sections are joined, lists and values replaced."""
        replaced = set[Where]()

        def joined(upper: dict[str, Any], lower: dict[str, Any], where: Where) -> dict[str, Any]:
            result = dict(lower)
            for key, value in upper.items():
                below, place = lower.get(key), (*where, key)
                if isinstance(value, dict) and isinstance(below, dict):
                    result[key] = joined(value, below, place)
                else:
                    result[key] = value
                    replaced.add(place)
            return result

        def left(noted: dict[Where, str]) -> dict[Where, str]:
            return {w: text for w, text in noted.items() if not any(w[:n] in replaced for n in range(1, len(w) + 1))}

        data = joined(self.data, other.data, ())
        return Document(data, left(other.places) | self.places, left(other.written) | self.written)


def read_document(text: str, name: str) -> Document:
    """Read the document of a recipe file; `name` stands in the messages.

    Raises:
        UserError: it is no YAML, or no mapping, or repeats a key, or holds what is refused.
    """
    document = Document({}, {(): f"{name}:1"})
    data = _read(text, (), document, lambda line: f"{name}:{line + 1}")
    if not isinstance(data, dict):
        seen = "empty" if data is None else "a list" if isinstance(data, list) else "plain text"
        raise UserError(f"{document.place(())}: this is {seen}; a recipe is made of keys, and begins such as `model:`")
    document.data.update(data)
    return document


def read_setting(setting: str) -> Document:
    """Read `foresight.beams=3` as a document; a UserError where it is not written so, or the value is no YAML."""
    key, equals, value = setting.partition("=")
    where, place = tuple(key.strip().split(".")), f"--set {brief(setting)}"
    if not equals or not all(where):
        raise UserError(f"{place}: write KEY=VALUE, such as foresight.beams=3")
    document = Document({}, {where[:n]: place for n in range(1, len(where) + 1)})
    # In a file, too, a dash alone is standard input; as YAML it is a list of nothing.
    data: Any = value.strip() if value.strip() == "-" else _read(value, where, document, lambda _: place)
    for part in reversed(where):
        data = {part: data}
    document.data.update(data)
    return document


class _Loader(yaml.SafeLoader):
    """PyYAML's own, without what is refused; it notes in a document where each key stands."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's way to say which plain words are no text
    depth = 0

    def __init__(self, text: str, document: Document, at: At) -> None:
        super().__init__(text)
        self.text, self.document, self.at = text, document, at

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="anchors, aliases and tags are not read", problem_mark=event.start_mark)
        if self.depth == _DEPTH:
            problem = f"more than {_DEPTH} sections within each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: yaml.Node, where: Where) -> Any:
        """Return the node's value, note the place of each key, and refuse repeated ones."""
        place = self.at(node.start_mark.line)
        self.document.places.setdefault(where, place)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value in node.value:
                place = self.at(key_node.start_mark.line)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise UserError(f"{place}: a key is one word; write KEY: VALUE")
                key = _whole(key_node.value, place)
                if key in result:
                    raise UserError(f"{place}: `{brief(key)}` stands twice in the same section; keep one")
                self.document.places[(*where, key)] = place
                result[key] = self.plain(value, (*where, key))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*where, str(i))) for i, item in enumerate(node.value)]
        self.document.written[where] = self.text[node.start_mark.index : node.end_mark.index]
        value = self.construct_object(node)
        return _whole(value, place) if isinstance(value, str) else value


# The numbers of YAML 1.2: 1e-4 is one, 010 is not 8, and 1:30 is not 90.
for _tag, _pattern, _first in (
    ("null", r"~|null|", "~nN"),
    ("bool", r"yes|no|true|false|on|off", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9]\d{0,99})", "-+0123456789"),
    ("float", r"[-+]?((\.\d+|\d+\.\d*)(e[-+]?\d+)?|\d+e[-+]?\d+|\.inf)|\.nan", "-+.0123456789"),
):
    _regexp = re.compile(f"(?:{_pattern})$", re.ASCII | re.IGNORECASE)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, [*_first, ""])


def _read(text: str, where: Where, document: Document, at: At) -> Any:
    """Read the value of a text, None if it is empty, and note the places of its keys in the document."""
    try:
        loader = _Loader(text, document, at)
        node = loader.get_single_node()
        return None if node is None else loader.plain(node, where)
    except yaml.MarkedYAMLError as e:
        mark, began = e.problem_mark or e.context_mark, e.context_mark
        problem = " ".join(", ".join(filter(None, (e.context, e.problem))).split())
        since = f" (it began in line {began.line + 1})" if began and mark and began.line != mark.line else ""
        raise UserError(f"{at(mark.line if mark else 0)}: {problem}{since}; {_HINT}") from None
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position)
        raise UserError(f"{at(line)}: the invisible character U+{e.character:04X} stands here; delete it") from None


def _whole(text: str, place: str) -> str:
    """Put characters together that are written in halves, `\\ud83d\\ude00`, as JSON does."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise UserError(f"{place}: `{brief(text)}` has half a character in it; write the whole one") from None
