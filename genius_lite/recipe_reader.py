"""From a YAML file to a recipe; of a mistake it says the file, the line, and what was probably meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from genius_lite.errors import UserError
from genius_lite.recipe import Recipe


def load(path: Path) -> Recipe:
    """Read a recipe file; file names in it are relative to the recipe, `out` to the working directory.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the recipe file in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: a recipe is UTF-8 text, this file is not") from None
    recipe = parse(text, str(path))
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(
                update={
                    "gguf": _beside(path, recipe.model.gguf),
                    "weights": recipe.model.weights and _beside(path, recipe.model.weights),
                }
            ),
            "queries": recipe.queries.model_copy(update={"source": _beside(path, recipe.queries.source)}),
        }
    )


def parse(text: str, name: str = "recipe") -> Recipe:
    """A recipe from YAML text; `name` stands in error messages. `out` defaults to runs/<name's stem>.

    Raises:
        UserError: as `load`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {e.problem}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{name}: not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name}:1: a recipe is a mapping that starts with keys such as `model:`")
    lines: dict[tuple[str, ...], int] = {}
    data = _plain(root, (), lines, name)
    data.setdefault("out", f"runs/{Path(name).stem}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as e:
        raise UserError(_explain(e, lines, name)) from None


def _plain(node: yaml.Node, where: tuple[str, ...], lines: dict[tuple[str, ...], int], name: str) -> Any:
    """The node's value, while noting the line of each key and refusing repeated ones."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in result:
                raise UserError(f"{name}:{line}: `{key}` stands twice in the same section; keep one")
            lines[(*where, key)] = line
            result[key] = _plain(value_node, (*where, key), lines, name)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*where, str(i)), lines, name) for i, child in enumerate(node.value)]
    return _scalar(node, name)


def _scalar(node: yaml.Node, name: str) -> Any:
    """A YAML 1.1 scalar; also reads 2e-5 as the number that everyone means by it."""
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"{name}:{node.start_mark.line + 1}: cannot read `{node.value}` here") from None
    finally:
        loader.dispose()
    if isinstance(value, str) and isinstance(node, yaml.ScalarNode) and node.style is None:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError, lines: dict[tuple[str, ...], int], name: str) -> str:
    """One line for the first mistake: file, line, what is wrong, what to write."""
    first = error.errors()[0]
    where = tuple(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained")))
    known = next(lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines)
    dotted, place = ".".join(where), f"{name}:{known}"
    if first["type"] == "extra_forbidden":
        keys = _keys_of(where[:-1])
        near = difflib.get_close_matches(where[-1], keys, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(keys)}"
        return f"{place}: unknown key `{dotted}`; {hint}"
    if first["type"] == "missing":
        return f"{place}: `{dotted}` is missing"
    if not where:
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    choices = {c for e in error.errors() if e["loc"][: len(where)] == first["loc"][: len(where)]
               for c in [e.get("ctx", {}).get("expected")] if c}  # fmt: skip
    message = f"expected {' or '.join(sorted(choices))}" if choices else first["msg"].lower()
    return f"{place}: `{dotted}` is {first['input']!r}: {message}"


def _keys_of(section: tuple[str, ...]) -> list[str]:
    """The keys that a section of the recipe knows."""
    model: Any = Recipe
    for part in section:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _beside(recipe: Path, name: str) -> str:
    """A local file's path, relative names taken from the recipe's folder; other sources as they are."""
    if name.startswith(("hf:", "python:")):
        return name
    return str((recipe.parent / Path(name).expanduser()).resolve())
