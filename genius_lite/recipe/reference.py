"""The reference of the recipe as Markdown, from its types and from the heads of recipe files."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from genius_lite.recipe import Recipe, schema
from genius_lite.recipe.document import Where
from genius_lite.recipe.types import Section, section_of

_HEAD = Path(__file__).with_suffix(".md")  # what stands before the tables
_RECIPES = """## The recipes here

What was not run was only loaded and checked: whether it fits and how long it takes is reckoned, and its model and
questions were not downloaded. `genius-lite plan RECIPE` reckons for your machine.

"""
_SCHEMA_LINE = "# yaml-language-server:"


def reference(recipes: Path | None) -> str:
    """Return every section and key with type, default and unit; of the folder `recipes` also what each is for."""
    parts = [_HEAD.read_text(encoding="utf-8")]
    if recipes:
        parts.append(_RECIPES + _table(("recipe", "what it is for", "was it run?"), _shipped(recipes)))
    return "\n".join([*parts, "## Top level\n\n" + _keys(()), *_sections(Recipe, ())])


def schema_text() -> str:
    """Return the JSON Schema as it is written to a file."""
    return json.dumps(schema.editor_schema(), indent=2) + "\n"


def _sections(model: type[Section], where: Where) -> Iterator[str]:
    """Yield the table of each section in a section, and of those in it; sections of one kind have a table together."""
    named: dict[type[Section], list[str]] = {}
    for key, field in model.model_fields.items():
        if section := section_of(field.annotation):
            named.setdefault(section, []).append(key)
    for section, keys in named.items():
        inner = (*where, keys[0])
        if "items" in schema.at(inner):
            inner = (*inner, "0")
        heading = ", ".join(f"`{'.'.join([*(part for part in where if part != '0'), key])}`" for key in keys)
        yield f"{'###' if where else '##'} {heading}\n\n{inspect.getdoc(section)}\n\n{_keys(inner)}"
        yield from _sections(section, inner)


def _keys(where: Where) -> str:
    """Return the table of a section's keys."""
    section, rows = schema.at(where), []
    for key in section["properties"]:
        node = schema.at((*where, key))
        inner, default = node.get("properties", ()), node.get("default", "runs/NAME")
        kind = f"`{{{', '.join(inner)}}}`" if inner and where else schema.phrase(node, "`{}`".format)
        shown = "" if isinstance(default, dict) and len(default) > 2 else f"`{schema.plain(default)}`"
        if key in section.get("required", ()) and key != "out":
            shown = "required"
        what = " ".join(node["description"].split("\n\n")[0].split()).rstrip(".")
        rows.append((f"`{key}`", kind, shown, node.get("unit", ""), what))
    return _table(("key", "type", "default", "unit", "what it does"), rows)


def _shipped(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the link of each recipe, its purpose and whether it was run, as the comments at its head say."""
    for path in sorted(folder.rglob("*.yaml"), key=lambda p: (len(p.parts), p.name != "quickstart.yaml", p)):
        name = path.relative_to(folder).as_posix()
        lines = (line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(_SCHEMA_LINE))
        head = takewhile(lambda line: line.startswith("# ") and not line.startswith("# genius-lite "), lines)
        purpose, _, run = " ".join(line[2:].rstrip() for line in head).partition("Run: ")
        yield f"[`{name}`]({name})", purpose.rstrip(), run or "see [RESULTS.md](RESULTS.md)"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
