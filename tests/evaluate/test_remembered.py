"""What the base model answered in an earlier run, taken over by a later one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from genius_lite.evaluate import remembered
from genius_lite.evaluate.measure import EvalModel
from genius_lite.evaluate.remembered import Inquiry
from genius_lite.pipeline import evaluation
from genius_lite.pipeline.evaluation import evaluate
from genius_lite.recipe import Check, Evaluate, Foresight, Model, Queries, Recipe, Sampler, TaskSource
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import open_run
from genius_lite.rundir.reader import RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support.models import questions

pytestmark = FORKED_HELPERS

PROBLEMS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(remembered, "WORTH", 0.0)
    return tmp_path / "genius-lite" / "measurements"


def measured(gguf: Path, folder: Path, out: str, check: Check = "exact", **changes: object) -> list[str]:
    """Evaluate the base model in a run folder of its own; what was said of remembered answers."""
    tasks = folder / "tasks.jsonl"
    rows = ({"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(PROBLEMS))
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = Evaluate(tasks=[TaskSource(source=str(tasks), check=check)], samples=1, queries=2, query_samples=2)
    recipe = Recipe(
        out=str(folder / out),
        model=Model(gguf=str(gguf)),
        queries=Queries(source=questions(folder, 4), limit=2),
        foresight=Foresight(max_tokens=8),
        evaluate=cfg,
        sampler=Sampler(slots=1, threads=1),
    ).model_copy(update={key: value for key, value in changes.items() if key != "remember"})
    if "remember" in changes:
        recipe = recipe.model_copy(update={"evaluate": cfg.model_copy(update={"remember": changes["remember"]})})
    progress, said = TerminalProgress(Console(quiet=True)), list[str]()
    progress.say = said.append  # pyright: ignore[reportAttributeAccessIssue]
    with open_run(recipe, progress) as session:
        evaluate(session.round(0), session.own)
    return [line for line in said if "earlier run" in line]


def test_a_later_run_takes_the_answers_and_scores_them_anew(tiny_llama, tmp_path, monkeypatch, cache):
    assert measured(tiny_llama, tmp_path, "first") == []
    assert len([*cache.glob("answers-*.json")]) == 2, "one of the task, one of the held-out queries"
    with monkeypatch.context() as patch:
        patch.setattr(EvalModel, "sampler", lambda *_: pytest.fail("the model is asked again"))
        said = measured(tiny_llama, tmp_path, "second", check="numeric")
    assert [line.partition(" are ")[0] for line in said] == [
        "base model: its answers to tasks", "base model: its answers to held-out queries"
    ]  # fmt: skip
    first, second = (RunFolder(tmp_path / out).own for out in ("first", "second"))
    kept = [(r.problem, r.sample, r.text, r.tokens, r.finish, r.temperature) for r in first.responses]
    assert [(r.problem, r.sample, r.text, r.tokens, r.finish, r.temperature) for r in second.responses] == kept
    assert second.signals == first.signals
    amounts = [timing.amount for timing in second.timings]
    assert amounts == [0, 0] and min(timing.amount for timing in first.timings) > 0
    assert [timing.untimed for timing in second.timings] == [timing.amount for timing in first.timings]
    took = [RunFolder(tmp_path / out).stage_seconds() for out in ("first", "second")]
    assert [[*seconds] for seconds in took] == [["evaluate"], []], "how long it takes to remember tells of no round"


@pytest.mark.parametrize("changed", [{"seed": 1}, {"foresight": Foresight(max_tokens=9)}, {"remember": False}])
def test_what_is_asked_otherwise_is_asked_again(tiny_llama, tmp_path, changed, cache):
    measured(tiny_llama, tmp_path, "first")
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert measured(tiny_llama, tmp_path, "second", **changed) == []
    after = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert before.items() <= after.items()
    assert len(after) - len(before) == (0 if "remember" in changed else 2)


@pytest.mark.parametrize("damage", ["another vocabulary", "a response less", "no number", "cut off"])
def test_what_cannot_be_an_answer_is_not_believed(tiny_llama, tmp_path, damage, cache):
    measured(tiny_llama, tmp_path, "first")
    for file in cache.glob("answers-*.json"):
        said = json.loads(file.read_text())
        first = next(iter(said["said"].values()))[0]
        if damage == "another vocabulary":
            first["tokens"][0] = 1_000_000
        elif damage == "a response less":
            next(iter(said["said"].values())).pop()
        elif damage == "no number":
            first["logprobs"][0] = 7.0
        file.write_text(json.dumps(said)[: 40 if damage == "cut off" else None])
    assert measured(tiny_llama, tmp_path, "second") == []
    assert RunFolder(tmp_path / "second").own.responses == RunFolder(tmp_path / "first").own.responses
    assert len(measured(tiny_llama, tmp_path, "third")) == 2, "they were written anew"


def test_what_was_said_before_an_interruption_is_remembered_too(tiny_llama, tmp_path, cache, monkeypatch):
    real, asked = EvalModel.sampler, 0

    def at_most_once(self: EvalModel, *args: object):
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return real(self, *args)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(EvalModel, "sampler", at_most_once)
        with pytest.raises(KeyboardInterrupt):
            measured(tiny_llama, tmp_path, "first")
    assert measured(tiny_llama, tmp_path, "first") == [], "its own log has them"
    assert [line.partition(" are ")[0] for line in measured(tiny_llama, tmp_path, "second")] == [
        "base model: its answers to tasks", "base model: its answers to held-out queries"
    ]  # fmt: skip


def test_a_part_of_the_answers_is_taken_as_well(tiny_llama, tmp_path, cache):
    measured(tiny_llama, tmp_path, "first")
    for file in cache.glob("answers-*.json"):
        said = json.loads(file.read_text())
        del said["said"][next(iter(said["said"]))]
        file.write_text(json.dumps(said))
    assert [line.partition(" are ")[0] for line in measured(tiny_llama, tmp_path, "second")] == [
        "base model: 2 of its 3 answers to tasks", "base model: 1 of its 2 answers to held-out queries"
    ]  # fmt: skip
    assert RunFolder(tmp_path / "second").own.responses == RunFolder(tmp_path / "first").own.responses
    assert RunFolder(tmp_path / "second").own.signals == RunFolder(tmp_path / "first").own.signals
    assert "base model: its answers to tasks" in measured(tiny_llama, tmp_path, "third")[0], "the rest was added"


def test_what_another_run_has_left_meanwhile_stays(tiny_llama, tmp_path, cache, monkeypatch):
    made = list[Inquiry]()
    monkeypatch.setattr(evaluation, "Inquiry", lambda *asked: made.append(Inquiry(*asked)) or made[-1])
    measured(tiny_llama, tmp_path, "first")
    left = [inquiry.recall() for inquiry in made]
    for inquiry, said in zip(made, left, strict=True):
        query = next(iter(said))
        inquiry.remember({query: said[query]}, 60.0)  # by a run that had begun before, and was interrupted
        assert inquiry.recall() == said and len(said) > 1
    for file in cache.glob("answers-*.json"):
        file.unlink()
    for inquiry, said in zip(made, left, strict=True):
        for query, responses in said.items():  # by runs side by side
            inquiry.remember({query: responses}, 60.0)
        assert inquiry.recall() == said
    assert len(made) == 2
