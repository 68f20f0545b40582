"""The reference and the JSON Schema beside the recipes are what the code generates, and agree with the reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from genius_lite.errors import UserError
from genius_lite.recipe import Recipe, schema
from genius_lite.recipe.document import read_document
from genius_lite.recipe.reader import parse
from genius_lite.recipe.reference import reference, schema_text

RECIPES = Path("recipes")
SHIPPED = sorted(RECIPES.rglob("*.yaml"))
GOOD = "model: {gguf: m.gguf}\nqueries: {source: q.txt}\n"


@pytest.fixture(scope="module")
def validator():
    written = json.loads(schema_text())
    jsonschema.Draft7Validator.check_schema(written)
    return jsonschema.Draft7Validator(written)


def test_the_files_are_what_the_code_generates():
    told = "run: genius-lite reference --recipes recipes > recipes/README.md"
    assert (RECIPES / "README.md").read_text(encoding="utf-8") == reference(RECIPES), told
    told = "run: genius-lite reference --schema > recipes/recipe.schema.json"
    assert (RECIPES / "recipe.schema.json").read_text(encoding="utf-8") == schema_text(), told


def test_every_key_has_a_type_and_says_what_it_does():
    text = reference(None)
    sections = [(), *((name,) for name in Recipe.section_names()), ("evaluate", "tasks", "0"), ("guard", "kl")]
    for section in sections:
        for key in schema.keys(section):
            node = schema.at((*section, key))
            assert len(node["description"]) > 4, (*section, key)
            assert f"| `{key}` | " in text
    assert "| `max_tokens` | a whole number of at least 1 | `512` | tokens | Longest response" in text
    assert "| `lr` | a number above 0 | `5e-5` |" in text
    assert "| `kl` | `{warn, halt}` | `{warn: 0.5, halt: 2.0}` | nats per token |" in text


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_recipes_name_their_schema_and_keep_to_it(path, validator):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = path.parent / first.partition("$schema=")[2]
    assert named.resolve() == (RECIPES / "recipe.schema.json").resolve()
    assert list(validator.iter_errors(read_document(path.read_text(encoding="utf-8"), str(path)).data)) == []


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "foresight: {beems: 2}",
        GOOD + "sed: 1",
        GOOD + "evaluate: {tasks: [{source: t.jsonl, chek: exact}]}",
        GOOD + "guard: {kl: {wran: 1}}",
        GOOD + "foresight: {beams: two}",
        GOOD + "foresight: {beams: 0}",
        GOOD + "quantize: {type: Q9}",
        GOOD + "sampler: fast",
        GOOD + "learner: {holdout: 1}",
        "model: {gguf: m.gguf}",
        "model: m.gguf\nqueries: {source: q}",
        "model: {gguf: m.gguf}\nqueries: {limit: 3}",
        "extends: [a.yaml]",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text, validator):
    assert not validator.is_valid(read_document(text, "r.yaml").data)
    with pytest.raises(UserError):
        parse(text, "r.yaml")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "sampler: auto",
        GOOD + "learner:\n  # lr: 1e-4\n",
        GOOD + "learner: {lr: 2e-5, alpha: 1, targets: [q_proj]}",
        GOOD + "guard: {kl: {warn: null}}",
        GOOD + "evaluate: {tasks: [{source: t.jsonl, check: numeric, options: {tolerance: 0.1}}], max_tokens: auto}",
        "extends: other.yaml\nqueries: {limit: 3}",
    ],
)
def test_the_schema_accepts_what_the_reader_accepts(text, validator):
    assert list(validator.iter_errors(read_document(text, "r.yaml").data)) == []
    if "extends" not in text:
        parse(text, "r.yaml")


def test_the_command_prints_both(tmp_path):
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", "reference"]

    def printed(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)

    assert printed("--schema").stdout == schema_text()
    assert printed().stdout == reference(None)
    refused = printed("--recipes", str(tmp_path / "none"))
    assert (refused.returncode, refused.stderr) == (2, f"error: {tmp_path}/none: no such folder of recipes\n")
