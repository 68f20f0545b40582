"""Every ready recipe from load to export, with its own settings: on a small model of its types, and few questions."""

from __future__ import annotations

import json
import re
import runpy
from functools import cache
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType as T

from genius_lite import load, run
from genius_lite.export.bundle import RunRound
from genius_lite.pipeline.job import prepare
from genius_lite.plan.fit import disk_bytes
from genius_lite.plan.shape import Shape
from genius_lite.recipe import TaskSource
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import sha256
from tests.conftest import FORKED_HELPERS
from tests.evaluate.benchmarks import write_punkt, write_rows
from tests.support.models import tiny_gguf

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = FORKED_HELPERS
READY = sorted(path.name for path in RECIPES.glob("*.yaml"))
LEAST = 0.95  # of the update


@cache
def _asked_by() -> dict[str, str]:
    """Each benchmark, whose process takes seconds to start, and the one of the recipes naming it that asks it here."""
    every = {name: load(RECIPES / name).evaluate.tasks for name in READY}
    return {task.benchmark: name for name, tasks in every.items() for task in tasks if task.benchmark}


def _small(name: str, folder: Path) -> dict[str, object]:
    """What is replaced: model and questions, and how long and how many."""
    recipe = load(RECIPES / name)
    named = re.search(r"(Q\d_\w)\W", recipe.model.gguf, re.IGNORECASE)
    assert named, recipe.model.gguf
    tiny_gguf(folder / "model.gguf", "llama", kind=T[named[1].upper()], width=512)
    rows = [json.dumps({recipe.queries.column: f"What is {n} and {n}?"}) + "\n" for n in range(8)]
    (folder / "questions.jsonl").write_text("".join(rows))
    asked = [
        {**task.model_dump(exclude_defaults=True), "source": _made_up(task, folder)}
        for task in recipe.evaluate.tasks
        if not task.benchmark or _asked_by()[task.benchmark] == name
    ]
    assert bool(asked) == bool(recipe.evaluate.tasks)
    return {
        "out": str(folder / "run"),
        "model.gguf": str(folder / "model.gguf"),
        "queries.source": str(folder / "questions.jsonl"),
        "queries.subset": "null",
        "queries.limit": 8,
        "rounds": 1,
        "foresight.max_tokens": 16,
        "evaluate.tasks": json.dumps(asked),
        "evaluate.max_tokens": 16,
        "sampler": "{slots: 8, threads: 1}",
        # Random models say nothing of sense that could be voted on, and end no response.
        "pairs.choose": "best",
        "pairs.truncated": "keep",
        "pairs.looping": "keep",
        "pairs.min_gap": 0.0,
        "learner.parity_limit": 10.0,  # NF4 is far off of random weights
        "guard.ended": "{}",
    }


def _made_up(task: TaskSource, folder: Path) -> str:
    if task.benchmark:
        return str(write_rows(folder, task.benchmark))
    rows = [json.dumps({"prompt": f"{n} + {n}?", "answer": 2 * n}) + "\n" for n in range(4)]
    (folder / "problems.jsonl").write_text("".join(rows))
    return str(folder / "problems.jsonl")


@pytest.mark.parametrize("name", READY)
def test_a_ready_recipe_leads_to_a_file_that_keeps_what_was_learned(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(write_punkt(tmp_path / "nltk")))
    recipe = load(RECIPES / name, [f"{key}={value}" for key, value in _small(name, tmp_path).items()])
    summary = run(recipe)
    made = summary.rounds[0].quantized
    assert made and made.kept and made.kept >= LEAST and made.keeps
    policy = tmp_path / "run/round-1/policy.gguf"
    source, types = gguf_file.read(tmp_path / "model.gguf"), {t.type for t in gguf_file.read(policy).tensors}
    expected = {t.type for t in source.tensors} if recipe.quantize.type == "source" else {T.F32, T.F16}
    assert types == expected
    models = (file for file in (tmp_path / "run").rglob("*") if file.suffix in (".gguf", ".safetensors"))
    held = sum(file.stat().st_size for file in models)
    planned = disk_bytes(prepare(recipe), Shape.of(source), 0)["export"]
    assert held > 12e6, "or logs are most of it"
    # At the fullest moment the export is there twice; and logs have room of their own.
    assert held == pytest.approx(planned - policy.stat().st_size - 5_000_000, rel=0.1)
    exported = RunRound.of(tmp_path / "run", summary.best).gguf
    assert sha256([Path(summary.exported)]) == sha256([exported])
    assert sha256([policy]) == made.sha256


def test_the_quickstarts_problems_are_right_and_none_is_learned_from():
    written = [_read(RECIPES / f"quickstart-{name}.jsonl") for name in ("queries", "problems")]
    made = runpy.run_path(str(RECIPES / "quickstart.py"))
    rows = made["problems"](0)
    assert [*written[0], *written[1]] == [*({"prompt": r["prompt"]} for r in rows[:40]), *rows[40:]]
    numbers = [tuple(int(n) for n in re.findall(r"\d+", row["prompt"])) for row in rows]
    assert [str(sum(pair)) for pair in numbers] == [row["answer"] for row in rows]
    assert len({tuple(sorted(pair)) for pair in numbers}) == len(rows) == 100
    assert made["problems"](1) != rows


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
