"""Benchmarks by their names: from rows as their data sets have them, through lm-evaluation-harness where it defines."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import datasets
import pytest

from genius_lite.data.sandbox import LimitError
from genius_lite.errors import UserError
from genius_lite.evaluate import harness
from genius_lite.evaluate.benchmarks import DEFINITIONS, load_task
from genius_lite.evaluate.models import tasks_named
from genius_lite.evaluate.scoring import Verdict
from genius_lite.evaluate.tasks import Task
from genius_lite.recipe import BENCHMARKS, BenchmarkName, TaskSource
from genius_lite.recipe.reader import parse
from tests.conftest import FORKED_HELPERS
from tests.evaluate.benchmarks import STAND_INS, asked_of, load, table, write_punkt, write_rows
from tests.support.recipes import GOOD

pytestmark = FORKED_HELPERS


@pytest.fixture(scope="module", autouse=True)
def punkt(tmp_path_factory):
    """NLTK's data, without its abbreviations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(write_punkt(tmp_path_factory.mktemp("nltk"))))
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Callable[[BenchmarkName], Task]:
    """A benchmark by its name, loaded once; its process starts again when it is asked something."""
    folder = tmp_path_factory.mktemp("rows")
    return cache(lambda name: load(folder, name))


@pytest.mark.parametrize("name", STAND_INS)
def test_responses_are_judged(name, loaded):
    task, expected = loaded(name), STAND_INS[name]
    problem = task.problems[0]
    assert (task.name, len(task.problems), problem.answer) == (name, len(expected.rows), expected.answer)
    assert not task.set_aside
    verdicts = {text: task.check(problem, text) for text in (*expected.right, *expected.wrong)}
    task.close()
    scores = {text: verdict.score for text, verdict in verdicts.items()}
    stated = {verdicts[text].answer for text in expected.right}
    assert scores == {**dict.fromkeys(expected.right, 1.0), **dict.fromkeys(expected.wrong, 0.0)}
    assert stated == {expected.answer or None}, "right answers are one answer, to a vote"


def test_the_page_of_the_docs_is_what_is_asked(loaded):
    told = "run: python -m tests.evaluate.benchmarks > docs/benchmarks.md"
    page = table(lambda name: asked_of(loaded(name)))
    assert Path("docs/benchmarks.md").read_text(encoding="utf-8") == page, told


@pytest.mark.parametrize("name", DEFINITIONS)
def test_data_sets_are_those_of_the_definitions(name):
    definition, cfg = DEFINITIONS[name], TaskSource.model_validate({"benchmark": name})
    folder = Path(harness.find_spec("lm_eval").origin).parent / "tasks" / definition.folder
    text = "".join(file.read_text() for file in folder.rglob("*") if file.suffix == ".yaml" or "_yaml" in file.name)
    named = cfg.source.removeprefix("hf:")
    assert re.search(rf"^dataset_path: {re.escape(named)}$", text, re.M)
    assert not cfg.subset or re.search(rf"^dataset_name: {cfg.subset}$", text, re.M)
    assert re.search(rf"^(test|validation)_split: {cfg.split}$", text, re.M)


def test_rows_of_the_hub(tmp_path, monkeypatch):
    asked = list[tuple]()

    def load_dataset(*named, **more):
        asked.append((*named, more["split"], more["streaming"]))
        return datasets.Dataset.from_list(STAND_INS["strategyqa"].rows * 5)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(TaskSource.model_validate({"benchmark": "strategyqa", "limit": 5}))
    assert asked == [("ChilleD/StrategyQA", None, "test", False)]
    assert [problem.answer for problem in task.problems] == list("BBBBB"), "every second row, from the first on"


def test_a_limit_takes_from_all_subjects(tmp_path):
    rows = [{**STAND_INS["mmlu-pro"].rows[0], "category": subject} for subject in ("law", "math", "history")] * 2
    rows.sort(key=lambda row: row["category"])
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps({**row, "question": f"{n}"}) + "\n" for n, row in enumerate(rows))
    )
    task = load_task(
        TaskSource.model_validate({"benchmark": "mmlu-pro", "source": str(tmp_path / "m.jsonl"), "limit": 3})
    )
    task.close()
    assert [re.search(r"about (\w+)", problem.prompt)[1] for problem in task.problems] == ["history", "law", "math"]


def test_rows_that_cannot_be_used_are_told(tmp_path):
    good, other = STAND_INS["mmlu-pro"].rows
    for bad, told in (
        ({**other, "category": "alchemy"}, "ValueError: no task mmlu_pro_alchemy"),
        ({**other, "options": None}, "TypeError: "),
        ({"question": "Why?"}, "no column `options`, `answer`, `category`"),
    ):
        (tmp_path / "m.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n{json.dumps(good)}\n")
        task = load_task(TaskSource.model_validate({"benchmark": "mmlu-pro", "source": str(tmp_path / "m.jsonl")}))
        task.close()
        assert len(task.problems) == 2
        assert task.set_aside.startswith("1 row is set aside; ")
        assert (
            f"m.jsonl:2: {'' if 'column' in told else 'lm-evaluation-harness cannot read it: '}{told}" in task.set_aside
        )


def test_a_file_of_other_columns_is_one_line(tmp_path):
    with (tmp_path / "q.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], ["What is 2 + 2?", "4"]])
    with pytest.raises(UserError, match=r"q\.csv.*no column `question`; it has prompt, answer; gsm8k is"):
        load_task(TaskSource.model_validate({"benchmark": "gsm8k", "source": str(tmp_path / "q.csv")}))


def test_a_metric_that_lies_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.Harness, "judge", lambda self, row, response: Verdict(1.0))
    with pytest.raises(UserError, match="benchmark gsm8k: its scorer calls '' right in 3 of 3 problems"):
        load(tmp_path, "gsm8k")
    with pytest.raises(UserError, match="benchmark ifeval: its scorer calls '' right in 2 of 2 problems"):
        load(tmp_path, "ifeval")


def test_a_process_that_dies_makes_a_response_wrong(tmp_path, monkeypatch):
    task = load(tmp_path, "gsm8k")
    monkeypatch.setattr(harness.LimitedProcess, "ask", lambda self, message: _dies())
    assert task.check(task.problems[0], "The final answer is 5, again") == Verdict(0.0, timed_out=True)
    task.close()


def _dies():
    raise LimitError("it takes more than 10 s")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(harness, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"benchmark gsm8k: .*: pip install 'lm-eval>=0\.4\.13'$"):
            load(tmp_path, "gsm8k")
        with pytest.raises(UserError, match=r"pip install 'lm-eval\[ifeval\]>=0\.4\.13'$"):
            load(tmp_path, "ifeval")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"benchmark ifeval: .* python -m nltk\.downloader punkt_tab$"):
        load(tmp_path, "ifeval")


def test_nothing_of_the_package_is_loaded_beside_its_process(tmp_path):
    program = (
        "import sys, pathlib, tests.evaluate.benchmarks as b; "
        "task = b.load(pathlib.Path(sys.argv[1]), 'gsm8k'); task.close(); print('lm_eval' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_names_in_recipes_and_commands(tmp_path, monkeypatch):
    def task(written: str) -> TaskSource:
        return parse(f"{GOOD}evaluate:\n  tasks:\n    - {written}\n").evaluate.tasks[0]

    for name in BENCHMARKS:
        found = task(f"benchmark: {name.upper()}")
        assert (found.benchmark, found.source) == (name, BENCHMARKS[name]["source"])
        assert TaskSource.model_validate(found.model_dump(exclude_defaults=True)) == found
        assert TaskSource.model_validate(found.model_dump()) == found
        assert tasks_named([name.upper()])[0] == [found]
    local = task("{benchmark: gsm8k, source: g.jsonl, limit: 20}")
    assert (local.source, local.subset, local.limit) == ("g.jsonl", None, 20)
    assert task("{benchmark: math-500, prompt: '{problem}'}").prompt == "{problem}"
    for written, told in (
        ("benchmark: gsm8", "`evaluate.tasks.0.benchmark` is gsm8; did you mean gsm8k?"),
        ("{benchmark: gsm8k, check: numeric}", "`evaluate.tasks.0.check` is laid down by benchmark: gsm8k"),
        ("{benchmark: gsm8k, size: 3}", "`evaluate.tasks.0.size` is for a task from reasoning_gym"),
        ("{benchmark: gsm8k, source: 'reasoning_gym:chain_sum'}", "`evaluate.tasks.0.source` is reasoning_gym's"),
        ("use: both", "`evaluate.tasks.0.source` is missing"),
    ):
        with pytest.raises(UserError) as e:
            task(written)
        assert told in str(e.value)
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, "gsm8k").rename("gsm8k")
    assert tasks_named(["gsm8k"])[0][0].benchmark is None, "a file of that name is a file"
    with pytest.raises(UserError, match="arc_challenge: no such file; did you mean the benchmark arc-ch"):
        tasks_named(["arc_challenge"])
