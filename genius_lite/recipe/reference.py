"""The reference of the recipe as Markdown, from its types and from the heads of recipe files."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from genius_lite.recipe import Evaluate, Guard, Limit, Recipe, Server, TaskSource, schema

_HEAD = """# Recipes

A recipe is a YAML file. `genius-lite init` writes one that fits this machine, `genius-lite validate RECIPE` checks one,
and `genius-lite run RECIPE` runs it. Below: how a recipe is written, the recipes here, and every key.

This file is made by `genius-lite reference --recipes recipes`, and `recipe.schema.json` by
`genius-lite reference --schema`. With the first line `# yaml-language-server: $schema=recipe.schema.json` an editor
that knows YAML (VS Code with its YAML extension, Neovim, JetBrains) completes keys and marks mistakes.

## How a recipe is written

`model.gguf` and `queries.source` must be said, everything else has a default:

```yaml
model: {gguf: smollm2.gguf}
queries: {source: questions.jsonl}
```

- Files are looked for beside the recipe; `out`, the run folder, in the working directory.
- An unknown key, a value of another type and settings that do not go together are errors, with their line.
- `--set KEY=VALUE` replaces a setting for one run: `genius-lite run mine.yaml --set rounds=3 --set learner.lr=1e-4`.
  The value is YAML, and a key in a section has a dot. It may stand several times, and counts more than the file.
- `extends: OTHER.yaml` takes everything from another recipe that this one does not say: sections are joined key by
  key, lists and values replaced. File names in the other recipe stay relative to it.
- A section with nothing but comments below it has its defaults.
- Anchors, aliases, merge keys (`<<`) and tags of YAML are not read. A date is text, `yes` and `no` are true and false,
  and `1e-4` is a number.
- A run goes on with the recipe that it was begun with. Only what suits the machine may change: `out`, `sampler` (but
  its `kv_type`), `tracking`, where files lie, `quantize.check`, and of `learner`: `gradient_checkpointing`,
  `max_pack_tokens`, `save_every`, `parity_limit`.
"""
_RECIPES = """## The recipes here

What was not run was only loaded and checked: whether it fits and how long it takes is reckoned, and its model and
questions were not downloaded. `genius-lite plan RECIPE` reckons for your machine.

"""
_SCHEMA_LINE = "# yaml-language-server:"
_RUN_LINE = "# Run: "


def reference(recipes: Path | None) -> str:
    """Every section and key with type, default and unit; of the folder `recipes` also what each recipe is for."""
    parts = [_HEAD]
    if recipes:
        parts.append(_RECIPES + _table(("recipe", "what it is for", "was it run?"), _shipped(recipes)))
    parts.append("## Top level\n\n" + _keys(()))
    for name in schema.keys(()):
        if name in Recipe.section_names():
            parts += _section(name, Recipe.model_fields[name].annotation)
    return "\n".join(parts)


def schema_text() -> str:
    """The JSON Schema as it is written to a file."""
    return json.dumps(schema.editor_schema(), indent=2) + "\n"


def _section(name: str, model: Any) -> Iterator[str]:
    yield f"## `{name}`\n\n{inspect.getdoc(model)}\n\n{_keys((name,))}"
    if model is Evaluate:
        yield f"### Each of `evaluate.tasks`\n\n{inspect.getdoc(TaskSource)}\n\n{_keys(('evaluate', 'tasks', '0'))}"
    if name == "sampler":
        yield f"### `sampler.server`\n\n{inspect.getdoc(Server)}\n\n{_keys(('sampler', 'server'))}"
    if model is Guard:
        first = next(iter(Guard.model_fields))
        yield f"### Each limit of `guard`\n\n{inspect.getdoc(Limit)}\n\n{_keys(('guard', first))}"


def _keys(where: tuple[str, ...]) -> str:
    """The table of a section's keys."""
    section = schema.at(where)
    rows = []
    for key in section["properties"]:
        node = schema.at((*where, key))
        if not where and key in Recipe.section_names():
            kind = "a section, see below" + (", or `auto`" if key == "sampler" else "")
            rows.append((f"`{key}`", kind, "", "", _sentence(node)))
            continue
        default = "required" if key in section.get("required", ()) and key != "out" else f"`{_yaml(node)}`"
        kind = f"`{{{', '.join(inner)}}}`" if (inner := node.get("properties")) else schema.phrase(node, "`{}`".format)
        rows.append((f"`{key}`", kind, default, node.get("unit", ""), str(node["description"])))
    return _table(("key", "type", "default", "unit", "what it does"), rows)


def _sentence(node: schema.Schema) -> str:
    return " ".join(str(node["description"]).split("\n\n")[0].split()).rstrip(".")


def _yaml(node: schema.Schema) -> str:
    """A default as a recipe writes it."""
    default = node.get("default", "runs/NAME")
    if isinstance(default, dict):
        return "{" + ", ".join(f"{k}: {_word(v)}" for k, v in default.items()) + "}"
    return f"[{', '.join(map(_word, default))}]" if isinstance(default, list) else _word(default)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace("e-0", "e-")


def _shipped(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Of each recipe its link, its purpose and whether it was run, as the comments at its head say."""
    for path in sorted(folder.rglob("*.yaml"), key=lambda p: (len(p.parts), p.name != "quickstart.yaml", p)):
        name = path.relative_to(folder).as_posix()
        head = [line for line in _comments(path) if not line.startswith(_SCHEMA_LINE)]
        said = list(takewhile(lambda line: not line.startswith("# genius-lite ") and line != "#", head))
        purpose = list(takewhile(lambda line: not line.startswith(_RUN_LINE), said))
        run = " ".join(line.removeprefix("# ") for line in said[len(purpose) :]).removeprefix("Run: ")
        what = " ".join(line.removeprefix("# ") for line in purpose)
        yield f"[`{name}`]({name})", what, run or "see [RESULTS.md](RESULTS.md)"


def _comments(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line.rstrip()


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
