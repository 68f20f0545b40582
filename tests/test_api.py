"""The library: what docs/python.md shows is run as it stands there."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import genius_lite
from tests.support.cli import RECIPE, genius

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama) -> Path:
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.gguf").symlink_to(tiny_llama)
    (folder / "q.txt").write_text("one\ntwo\nthree\nfour\n")
    (folder / "t.jsonl").write_text(json.dumps({"prompt": "one", "answer": "1"}) + "\n")
    # One branch at a time: in other company a sum is rounded in another way.
    recipe = RECIPE.replace("slots: 8", "slots: 1")
    (folder / "mine.yaml").write_text(recipe + "evaluate: {tasks: [{source: t.jsonl}], samples: 1, max_tokens: 8}\n")
    return folder


def test_the_pages_examples_run_and_say_nothing_but_what_they_print(project, monkeypatch, capfd):
    monkeypatch.chdir(project)
    assert len(EXAMPLES) == 2
    whole: dict = {}
    exec(compile(EXAMPLES[0], "python.md", "exec"), whole)
    shown = capfd.readouterr().out.splitlines()
    assert shown == [f"{whole['summary'].best} {whole['summary'].exported}"]
    assert Path(whole["summary"].exported).is_file()
    assert len(whole["summary"].rounds) == 1

    stages: dict = {}
    exec(compile(EXAMPLES[1], "python.md", "exec"), stages)
    assert len(capfd.readouterr().out.splitlines()) == 1
    assert [r.query.prompt for r in stages["rollouts"]] == ["one", "two", "three", "four"]
    assert stages["pairs"]
    assert stages["tuned"].gguf.is_file()
    assert stages["adapter"].is_dir()
    (own,), (before,), (after,) = (stages[name].tasks for name in ("own", "before", "after"))
    assert (own.problems, before.problems, after.problems) == (1, 1, 1)
    assert own == before, "the rounds have the types of the model, so that it is the base that they are told against"
    assert after.sampled_gain is not None, "the tuned model is set beside the base model"
    # The same stages as in a run: the same seed gives the same pairs.
    made = [Path("runs") / name / "round-1" / "pairs.jsonl" for name in ("mine", "by-hand")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_base_and_tuned_answer_side_by_side(project, monkeypatch):
    monkeypatch.chdir(project)
    genius_lite.run(genius_lite.load("mine.yaml", ["rounds=1"]))  # nothing is left to do if the example above ran
    chat = ["chat", "runs/mine", "--round", 1, "--side-by-side", "--max-tokens", 8, "--context", 128]
    result = genius(*chat, cwd=project, given="hello\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("\nbase model:\n")
    assert "\n\nruns/mine, round 1:\n" in result.stdout
    refused = genius("chat", "runs/mine", "--round", 0, "--side-by-side", cwd=project)
    assert refused.returncode == 2
    assert "is the base model itself; choose another with --round" in refused.stderr


def test_a_run_goes_on_within_a_loop_as_a_notebook_has_one(project, monkeypatch):
    monkeypatch.chdir(project)

    async def cell():
        return genius_lite.run(genius_lite.load("mine.yaml", ["out=runs/cell", "rounds=1", "sampler=auto"]))

    assert Path(asyncio.run(cell()).exported).is_file()


def test_a_recipe_may_be_made_in_python(project):
    recipe = genius_lite.Recipe.model_validate(
        {"out": "x", "model": {"gguf": "tiny.gguf"}, "queries": {"source": str(project / "q.txt")}, "sampler": "auto"}
    )
    assert (recipe.foresight.beams, recipe.sampler.slots) == (2, "auto")
    with pytest.raises(genius_lite.UserError, match="no such GGUF file"):
        genius_lite.run(recipe)


def test_importing_is_light_and_names_are_found_when_they_are_used():
    heavy = "torch transformers llama_cpp numpy pydantic datasets rich yaml"
    code = (
        "import sys, genius_lite\n"
        f"assert not set({heavy.split()!r}) & set(sys.modules)\n"
        "import genius_lite.recipe\n"
        "from genius_lite import Recipe, run\n"
        "import genius_lite.run, types\n"
        "from genius_lite.run import run as same\n"
        "assert isinstance(genius_lite.run, types.FunctionType) and genius_lite.run is run is same\n"
        "assert isinstance(genius_lite.recipe, types.ModuleType)\n"
        "assert genius_lite.Recipe is Recipe is genius_lite.recipe.Recipe\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert all(hasattr(genius_lite, name) for name in dir(genius_lite))
    with pytest.raises(AttributeError, match="has no attribute 'smaple'"):
        genius_lite.smaple  # noqa: B018


def test_type_checkers_are_told_the_same():
    stub = ast.parse(Path(genius_lite.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == {name: f"genius_lite.{home}" for name, home in genius_lite._HOMES.items()}
