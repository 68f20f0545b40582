"""What `genius-lite eval` measures goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.evaluate.benchmarks import load_tasks
from genius_lite.evaluate.models import NamedModel, PromptConfig, evaluate_models, holding, tasks_named, write_results
from genius_lite.progress import Advance, Progress
from genius_lite.recipe import Evaluate, TaskSource
from genius_lite.results.evaluation import Answers, Response
from genius_lite.rundir.lines import RecordLog, read_records
from genius_lite.rundir.lock import hold
from tests.support.cli import genius

CFG = Evaluate(samples=2)
PROBLEMS = [{"prompt": f"question {n}", "answer": f"{n}"} for n in range(24)]
INTERRUPTED = """
import os, signal
import genius_lite.evaluate.models as models
class Log(models.RecordLog):
    def append(self, *records):
        super().append(*records)
        os.kill(os.getpid(), signal.SIGINT)
models.RecordLog = Log
"""


class FullLog(RecordLog):
    """Holds the answers to nine problems."""

    def append(self, *records) -> None:
        if len(self.records) == 9:
            raise OSError("no room")
        super().append(*records)


class Counting(Progress):
    """Counts responses, and those that were known before."""

    def __init__(self):
        self.known, self.count = list[float](), 0.0

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        self.known.append(done)

        def advance(n: float) -> None:
            self.count += n

        yield advance


@pytest.fixture
def tasks(tmp_path) -> list[TaskSource]:
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(problem)}\n" for problem in PROBLEMS))
    return [TaskSource(source=str(tmp_path / "t.jsonl"), check="numeric")]


def measured(gguf: Path, tasks: list[TaskSource], out: Path, progress: Progress, seed: int = 0) -> list[Response]:
    models, how = [NamedModel("tiny", gguf)], PromptConfig(max_tokens=8)
    with holding(out):
        found, responses = evaluate_models(models, tasks, CFG, how, seed=seed, progress=progress, keep=out)
        assert [row.problems for (row,) in found] == [24]
        write_results(out, models, found, responses)
    return responses[0]


def interrupted(*arguments, seed: int = 0) -> Counting:
    progress = Counting()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr("genius_lite.evaluate.models.RecordLog", FullLog)
        measured(*arguments, progress, seed)
    return progress


def test_a_colon_that_belongs_to_a_name_names_no_checker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.jsonl", "a:exact"):
        (tmp_path / name).write_text('{"prompt": "2 + 2?", "answer": "4"}')
    found, _ = tasks_named(["a:b.jsonl", "a:exact", "a:b.jsonl:numeric", "hf:squad", "hf:squad:exact"])
    assert [task.source for task in found] == ["a:b.jsonl", "a:exact", "a:b.jsonl", "hf:squad", "hf:squad"]
    assert [task.check for task in found] == ["exact", "exact", "numeric", "exact", "exact"]
    with pytest.raises(UserError, match=r"b\.jsonl:number': Input should be 'exact', 'numeric'"):
        tasks_named(["b.jsonl:number"])


def test_columns_of_a_file_may_be_called_as_they_usually_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ['{"Question": "2 + 2?", "response": "no"}']
    rows += [f'{{"Question": "2 + {n}?", "answer": "{2 + n}", "response": "no"}}' for n in (3, 4)]
    (tmp_path / "n.jsonl").write_text("\n".join(rows))
    (tmp_path / "c.csv").write_text("problem,label\nWhich?,this\nAnd now?,these\n")
    talk = '{"messages": [{"role": "user", "content": "2 + 2?"}], "text": "User: 2 + 2?", "answer": "4"}\n'
    (tmp_path / "m.jsonl").write_text(talk)
    found, _ = tasks_named(["n.jsonl:numeric", "c.csv", "m.jsonl:numeric"])
    named = [(task.prompt, task.answer, task.check) for task in found]
    assert named == [
        ("Question", "answer", "numeric"),
        ("problem", "label", "exact"),
        ("prompt", "answer", "numeric"),
    ]
    assert [len(task.problems) for task in load_tasks(found)] == [2, 2, 1]
    (tmp_path / "g.jsonl").write_text('{"question": "2 + 2?", "gold": "4"}\n')
    with pytest.raises(
        UserError, match=r"g\.jsonl: no column such as answer, .*; it has question, gold; say which in a recipe"
    ):
        tasks_named(["g.jsonl:numeric"])


def test_answers_are_kept_until_the_results_are_written(tasks, tiny_llama, tmp_path):
    out = tmp_path / "out"
    interrupted(tiny_llama, tasks, out)
    assert not out.exists()
    (log,) = Path(f"{out}.asked").glob("*.jsonl")
    kept = [response for one in read_records(log, Answers) for response in one.responses]
    assert len(kept) == 9 * 3
    assert interrupted(tiny_llama, tasks, out, seed=1).known == [0], "another seed asks for other responses"
    responses = measured(tiny_llama, tasks, out, again := Counting())
    assert (again.known, again.count) == ([27], 72 - 27)
    assert all(response in responses for response in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.jsonl"]
    assert read_records(out / "responses-0.jsonl", Response) == responses


def test_one_process_at_a_time_answers_for_the_same_results(tasks, tiny_llama, tmp_path):
    (tmp_path / "out.asked").mkdir()
    with hold(tmp_path / "out.asked"):
        with pytest.raises(UserError, match=r"out is in use by another process"):
            measured(tiny_llama, tasks, tmp_path / "out", Counting())
        assert (tmp_path / "out.asked" / "lock").exists(), "whoever is refused takes nothing from whoever works"
    measured(tiny_llama, tasks, tmp_path / "out", Counting())
    with pytest.raises(UserError, match="out has results, which are whole; name another folder"):
        measured(tiny_llama, tasks, tmp_path / "out", Counting())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.jsonl"]


def test_what_was_answered_stays_where_results_of_that_name_are_in_the_way(tasks, tiny_llama, tmp_path):
    out = tmp_path / "out"
    interrupted(tiny_llama, tasks, out)
    (log,) = Path(f"{out}.asked").glob("*.jsonl")
    kept = log.read_bytes()
    out.mkdir()
    with pytest.raises(UserError, match="out exists; name another folder"):
        measured(tiny_llama, tasks, out, Counting())
    assert log.read_bytes() == kept
    out.rmdir()
    measured(tiny_llama, tasks, out, again := Counting())
    assert again.known == [27]


def test_problems_that_chose_a_round_do_not_report_on_it(tasks, tiny_llama, tmp_path):
    ids = [problem.id for (task,) in [load_tasks(tasks)] for problem in task.problems]
    said, progress = list[str](), Counting()
    progress.say = said.append  # pyright: ignore[reportAttributeAccessIssue]
    models, how = [NamedModel("tiny", tiny_llama)], PromptConfig(max_tokens=8)
    chose = {ids[0]: "choose", ids[1]: "choose", ids[2]: "both", "another task's": "choose"}
    ((found,),), (responses,) = evaluate_models(models, tasks, CFG, how, seed=0, progress=progress, chose=chose)
    assert found.problems == 22 and not {response.problem for response in responses} & set(ids[:2])
    assert [line for line in said if "chose" in line] == [
        "2 problems chose between the run's rounds, and are left out",
        "warning: 1 problem chose between the run's rounds, so that gains are flattered",
    ]
    with pytest.raises(UserError, match="all problems chose between the run's rounds"):
        evaluate_models(models, tasks, CFG, how, seed=0, progress=progress, chose=dict.fromkeys(ids, "choose"))


def test_what_was_checked_by_another_answer_is_asked_anew(tasks, tiny_llama, tmp_path):
    interrupted(tiny_llama, tasks, tmp_path / "out")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({**problem, "answer": "7"}) + "\n" for problem in PROBLEMS))
    measured(tiny_llama, tasks, tmp_path / "out", anew := Counting())
    assert (anew.known, anew.count) == ([0], 72)


def test_the_command_says_how_to_go_on(tasks, tiny_llama, tmp_path):
    asked = ("eval", tiny_llama, "--tasks", "t.jsonl:numeric", "--samples", 2, "--max-tokens", 8, "--out", "out")
    stopped = genius(*asked, cwd=tmp_path, before=INTERRUPTED)
    assert stopped.returncode == 130
    assert "what is finished is kept. The same command goes on: " in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = genius(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t.jsonl"]
    assert "24 problems" in done.stdout
