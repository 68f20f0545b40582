"""From a YAML file to a recipe; of a mistake it says the file, the line, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from genius_lite.errors import UserError
from genius_lite.recipe import STDIN, Prefix, Recipe
from genius_lite.recipe.document import Document, Where, read_document, read_setting
from genius_lite.recipe.errors import explain
from genius_lite.recipe.sampler import sampler_section
from genius_lite.recipe.types import at_home
from genius_lite.text import brief

_LARGEST = 100_000  # bytes; the largest shipped recipe has two thousand
_SOURCES = {("model", "gguf"), ("model", "weights"), ("queries", "source")}


def load(path: Path | str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; file names in it are relative to the recipe, `out` to the working directory.

    `extends: OTHER.yaml` in it takes everything from another recipe that it does not say itself.

    Args:
        settings: what replaces the file's own, such as `foresight.beams=3`.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    document = _extended(Path(path), ())
    for setting in settings:
        replacing = read_setting(setting)
        if "extends" in replacing.data:
            raise UserError(f"--set {brief(setting)}: `extends` is for a file; write a recipe with it, and name that")
        document = _laid(replacing, document)
    return _recipe(document, str(path))


def parse(text: str, name: str = "recipe") -> Recipe:
    """Read a recipe from YAML text, as `load`; `name` stands in messages, and `out` defaults to runs/<name's stem>."""
    return _recipe(read_document(text, name), name)


def _recipe(document: Document, name: str) -> Recipe:
    # A section that holds nothing but comments is null.
    written = {k: v for k, v in document.data.items() if v is not None or k not in Recipe.section_names()}
    try:
        return Recipe.model_validate({"out": f"runs/{Path(name).stem}", **written})
    except ValidationError as e:
        raise UserError(explain(e, document)) from None


def _extended(path: Path, through: tuple[Path, ...]) -> Document:
    """Read a file, and lay it over the one that it extends."""
    document = read_document(_text(path), str(path))
    for where in document.places:
        if where in _SOURCES or (where[:2] == ("evaluate", "tasks") and where[3:] == ("source",)):
            _resolve(document, where, path)
    if "extends" not in document.data:
        return document
    parent, place = document.data.pop("extends"), document.places[("extends",)]
    if not isinstance(parent, str) or not parent:
        raise UserError(f"{place}: `extends` names one other recipe; write `extends: OTHER.yaml`")
    above = Path(_beside(path, parent, place))
    if above.resolve() in (through := (*through, path.resolve())):
        raise UserError(f"{place}: {parent} extends this recipe in turn; take one `extends` out")
    if not above.is_file():
        raise UserError(f"{place}: `extends` is {parent}: there is no such recipe beside this one")
    return _laid(_said(document), _extended(above, through))


def _laid(document: Document, other: Document) -> Document:
    """Lay a document over another one, whose `sampler: auto` is short for keys that stay unless they are replaced."""
    if other.data.get("sampler") == "auto" and isinstance(document.data.get("sampler"), dict):
        other.data.update(sampler=sampler_section("auto"), policy=other.data.get("policy", "auto"))
    return document.over(other)


def _said(document: Document) -> Document:
    """Take out what says nothing: a section of comments replaces none. One that is null is the defaults."""
    for name in Recipe.section_names():
        if name in document.data and document.data[name] is None and not document.written.get((name,)):
            del document.data[name], document.places[(name,)]
            document.written.pop((name,), None)
    return document


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the recipe file in it") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None
    if len(raw) > _LARGEST:
        raise UserError(f"{path}: over {_LARGEST // 1000} kB, which is no recipe; name the .yaml file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path}:{line}: this is not UTF-8 text; save the file as UTF-8") from None


def _resolve(document: Document, where: Where, recipe: Path) -> None:
    """Take a local file from the recipe's folder; whatever is no text is left to pydantic."""
    section: Any = document.data
    for part in where[:-1]:
        section = section[int(part)] if isinstance(section, list) else section[part]
    if section[where[-1]] and isinstance(section[where[-1]], str):
        section[where[-1]] = _beside(recipe, section[where[-1]], document.places[where])


def _beside(recipe: Path, name: str, place: str) -> str:
    """Return a local file's path, and other sources as they are."""
    if name == STDIN or Prefix.starts(name):
        return name
    try:
        path = recipe.parent / at_home(name)
        path.resolve()  # so that what cannot be a name is told
        # A link's own name says what the file is: those of the hub's cache lead to hashes.
        return at_home(str(path.parent.resolve() / path.name))
    except PydanticCustomError as e:
        raise UserError(f"{place}: {e}") from None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a character that no file name has
        raise UserError(f"{place}: {name!r:.60} cannot be the name of a file; write another one") from None
