"""What PyYAML finds wrong with a file, in words that say what to write."""

from __future__ import annotations

from typing import Any

import yaml

# A part of what PyYAML says; what to say instead; and whether the place is where the construct begins.
_MEANINGS = (
    ("'\\t'", "a tab stands here; write spaces", False),
    (
        "mapping values are not allowed",
        "a `:` too many, or an indent that does not fit; quote text with `: ` in it",
        False,
    ),
    ("could not find expected ':'", "this line has no `: `; a setting is written KEY: VALUE", True),
    ("but found '<scalar>'", "text stands behind a value that has ended; put all of it in quotes", False),
    ("found ']'", "a bracket too many, or a value is missing before it", False),
    ("found '}'", "a bracket too many, or a value is missing before it", False),
    ("found ','", "a comma too many, or a value is missing before it", False),
    ("expected <block end>", "this line is not indented as those beside it; align them", False),
    ("found unexpected end of stream", "a quote that opens here is never closed; close it", True),
    ("expected ',' or", "a comma or the closing bracket is missing in what opens here", True),
    ("sequence entries are not allowed", "a list begins on a line of its own; or write it [A, B]", False),
    ("escape", "a backslash in double quotes has a meaning of its own; use single quotes", False),
    ("expected alphabetic or numeric", "put text that starts with `*` or `&` in quotes", False),
    ("chomping or indentation", "put text that starts with `|` or `>` in quotes", False),
    ("cannot start any token", "put text that starts with this character in quotes", False),
    ("mapping keys are not allowed", "put text that starts with `?` in quotes", False),
)


class Refused(yaml.MarkedYAMLError):
    """YAML that is right, and not read here; `problem` is for the user."""


def fault(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """The number of the line, first is 1, and what is wrong there."""
    problem = error.problem or "it cannot be read"
    if isinstance(error, Refused):
        return _line(error.problem_mark), problem
    if problem.startswith("but found another document"):
        return _line(error.problem_mark), "a second document starts here; a recipe is one, take `---` out"
    if "tag" in problem or (error.context or "").endswith(" tag"):
        return _line(error.problem_mark), "put text that starts with `!` in quotes"
    for part, meaning, at_its_start in _MEANINGS:
        if part in problem:
            mark = error.context_mark if at_its_start else error.problem_mark
            return _line(mark or error.problem_mark), meaning
    return _line(error.problem_mark or error.context_mark), f"not YAML: {' '.join(problem.split())}"


def invisible(error: Any, text: str) -> tuple[int, str]:
    """The same of a `yaml.reader.ReaderError`: a character that YAML does not allow."""
    line = text.count("\n", 0, error.position) + 1
    return line, f"a character that cannot be seen (U+{error.character:04X}) stands here; delete it"


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1
