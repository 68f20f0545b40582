from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.reuse import take
from genius_lite.rundir import RunDir

IDENTITY = {
    "model": "m",
    "weights": None,
    "queries": "q",
    "watched": "w",
    "seed": 0,
    "tasks": ["t"],
    "learner": {"holdout": 0.1, "loss": "aco"},
    "foresight": {"max_tokens": 64, "temperature": 1.0},
    "evaluate": {"samples": 1, "rollback": True},
}
ALL = ["master", "round-0/evaluation", "round-1/rollouts.jsonl"]


@pytest.fixture
def other(tmp_path) -> Path:
    run = tmp_path / "other"
    for folder, file in (("master", "w"), ("round-0/evaluation", "responses.jsonl"), ("round-1/adapter", "a")):
        (run / folder).mkdir(parents=True)
        (run / folder / file).write_text(file)
    (run / "round-1" / "rollouts.jsonl").write_text("{}\n")
    (run / "recipe.json").write_text(json.dumps(IDENTITY))
    return run


def changed(**sections) -> dict:
    identity = copy.deepcopy(IDENTITY)
    for name, value in sections.items():
        identity[name] = {**identity[name], **value} if isinstance(value, dict) else value
    return identity


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (changed(), ALL),
        (changed(learner={"loss": "dpo"}), ALL),
        (changed(evaluate={"rollback": False}), ALL),
        (changed(evaluate={"samples": 2}), ["master", "round-1/rollouts.jsonl"]),
        (changed(foresight={"temperature": 0.6}), ["master", "round-0/evaluation"]),
        (changed(foresight={"max_tokens": 32}), ["master"]),
        (changed(queries="others"), ["master", "round-0/evaluation"]),
        (changed(watched="others"), ["master", "round-1/rollouts.jsonl"]),
        (changed(seed=1), ["master"]),
        (changed(model="another"), []),
    ],
)
def test_only_what_would_come_out_the_same_is_taken(tmp_path, other, identity, expected):
    own = RunDir(tmp_path / "own")
    own.path.mkdir()
    assert take(own, identity, other) == expected
    assert {str(p.relative_to(own.path)) for p in own.path.rglob("*") if p.is_file()} == {
        {"master": "master/w", "round-0/evaluation": "round-0/evaluation/responses.jsonl"}.get(name, name)
        for name in expected
    }
    assert take(own, identity, other) == [], "what is there is left alone"


def test_the_log_is_a_copy_that_can_grow(tmp_path, other):
    own = RunDir(tmp_path / "own")
    own.path.mkdir()
    take(own, IDENTITY, other)
    with (own / "round-1" / "rollouts.jsonl").open("a") as file:
        file.write("more\n")
    assert (other / "round-1" / "rollouts.jsonl").read_text() == "{}\n"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        take(RunDir(tmp_path), IDENTITY, tmp_path / "nothing")
