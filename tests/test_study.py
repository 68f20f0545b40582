"""The study's own scripts: what they measure is what a task of the package says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from genius_lite.records import Candidate, Completion, PreferencePair, Query, Rollout, Step, query_id
from genius_lite.rundir.reader import RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support.cli import RECIPE, genius

pytestmark = FORKED_HELPERS
STUDY = Path(__file__).parents[1] / "recipes" / "study"


def test_a_right_answer_of_a_problem_is_right(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    values = importlib.import_module("values")
    document = {"question": "What is 3 + 4?", "short_answer": "7"}
    monkeypatch.setattr(values, "gsm8k_test", lambda: [document])
    query = query_id(document["question"])
    candidates = [
        Candidate(0, Completion([token], [value], "end"), None, value, value)
        for token, value in ((7, -0.25), (8, -0.5))
    ]
    rollout = Rollout(Query(query, document["question"], [1]), [Step(0, candidates, [0])])
    pair = PreferencePair(query, 0, [1], [7], [8], -0.25, -0.5, -0.25, -0.5, True, True)
    second = Rollout(rollout.query, [Step(0, candidates[::-1], [0])])
    found = values.measured(values.gsm8k(), [rollout, second], [pair], lambda tokens: f"#### {tokens[-1]}")
    assert (found["right"], found["chosen_right"], found["rejected_right"], found["auc"]) == (0.5, 1.0, 0.0, 1.0)


def test_a_seed_that_is_halted_ends_no_others_and_no_old_recipe_counts_as_this_one(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(STUDY)
    seeds = importlib.import_module("quickstart_seeds")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")  # of whichever recipe: the program looks at it
    code, asked = 3, []

    def called(command, check):
        asked.append("genius_lite" in command)
        return subprocess.CompletedProcess(command, code if asked[-1] else 0)

    monkeypatch.setattr(seeds.subprocess, "run", called)
    seeds.run(tmp_path, 0, 40)
    assert asked == [False, True]
    code = 2
    with pytest.raises(subprocess.CalledProcessError):
        seeds.run(tmp_path, 0, 40)


def test_a_mean_over_seeds_has_students_interval(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    seeds = importlib.import_module("quickstart_seeds")
    rows = [
        {
            "seed": number,
            "round": 1,
            "exported": True,
            **{kind: {"base": 0.1, "tuned": 0.1 + gain, "gain": gains} for kind in seeds.KINDS},
            "pairs": 3,
            "sampled_tokens": 1000,
            "signals": dict.fromkeys(seeds.SIGNALS, 0.5),
        }
        for number, gain in enumerate((0.1, 0.2, 0.3))
        for gains in [{"estimate": gain, "low": gain - 0.15, "high": gain + 0.15}]
    ]
    _, _, first, *_, sampled, greedy, exported, _ = seeds.table(rows)
    assert first == "| 0 | 10 % | 20 % | +10.0 [-5.0, +25.0] | 10 % | 20 % | +10.0 [-5.0, +25.0] | 3 | 1,000 |"
    # 4.303 is Student's quantile of two degrees of freedom: 4.303 * 0.1 / sqrt(3) is 0.248
    assert sampled == "round 1, sampled: +20.0 [-4.8, +44.8] points; clear of zero in 2 of 3, below it in 0"
    assert greedy == sampled.replace("sampled", "greedy")
    assert exported == sampled.replace("round 1", "exported")
    better = [
        {**row, **{kind: {**row[kind], "tuned": row[kind]["tuned"] + row["seed"] / 10} for kind in seeds.KINDS}}
        for row in rows
    ]
    found = [*seeds.differences(better, rows)]
    assert found == [
        f"{what}, {kind}: +10.0 [-14.8, +34.8] points" for what in ("round 1", "exported") for kind in seeds.KINDS
    ]


def test_a_signal_that_falls_before_each_fall_is_named(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    seeds = importlib.import_module("quickstart_seeds")
    accuracies = [[0.2, 0.4, 0.5, 0.45], [0.2, 0.35, 0.3, 0.1], [0.2, 0.5, 0.4, 0.45]]
    rows = [
        {
            "seed": seed,
            "round": number,
            **{kind: {"tuned": accuracy, "base": 0.1} for kind in seeds.KINDS},
            "alarms": ["warn: spread"] if accuracy < before else ["warn: entropy"],
            # What comes next, and of the last round nothing that could be told.
            "signals": {**dict.fromkeys(seeds.SIGNALS, 0.5), "agreement": following - accuracy, "kl": None},
            "searched": {
                "value": -1.0,
                "repeated": before - accuracy,
            },  # by the model before: of the first round no matter
        }
        for seed, rounds in enumerate(accuracies)
        for number, (before, accuracy, following) in enumerate(
            zip([9.0, *rounds[:-1]], rounds, [*rounds[1:], 9.0], strict=True), 1
        )
    ]
    assert [*seeds.foreseen(rows)] == [
        "agreement and the next round's change: +1.00 over 9 rounds",
        "repeated and the next round's change: -1.00 over 9 rounds",
        "rounds that the guard warned of by their spread: 4 of 4 answered worse than the one before",
        "rounds not warned of: 0 of 5 answered worse than the one before",
    ]
    assert [*seeds.foreseen(rows[:8])] == [], "of six rounds nothing is said"


def test_arms_run_and_their_table_says_what_they_came_to(monkeypatch, tmp_path, tiny_llama, capsys):
    """Two arms that differ in how pairs are chosen, in small: the second takes the first one's responses."""
    monkeypatch.syspath_prepend(STUDY)
    arms = importlib.import_module("arms")
    monkeypatch.setattr(arms, "HERE", tmp_path)

    def complete(command: list[object]) -> None:
        done = genius(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(arms, "complete", complete)
    monkeypatch.setitem(arms.ARMS, "A", (1.0, {"pairs.choose": "best"}))
    monkeypatch.setitem(arms.ARMS, "R", (0.5, {"pairs.choose": "random", "rounds": 2}))
    (tmp_path / "results").mkdir()
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\nfour\n")
    problems = [{"prompt": word, "answer": word} for word in ("five", "six")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    (tmp_path / "arms-smollm2.yaml").write_text(
        RECIPE.replace("tiny.gguf", str(tiny_llama)).replace("2\n", "1\n").replace("q.txt}", "q.txt, limit: 4}")
        + "evaluate: {tasks: [{source: t.jsonl, check: exact, use: both}], samples: 2, sweep: [0.5], rollback: false}\n"
    )
    monkeypatch.setattr(sys, "argv", ["arms.py", str(tmp_path / "runs"), "--arms", "A", "R"])
    arms.main()
    rows = json.loads((tmp_path / "results" / "arms-smollm2.json").read_text())["arms"]
    assert [(row["arm"], row["round"], row["seeds"], row["votes"]) for row in rows] == [
        ("A", 1, 1, 2), ("R", 1, 1, 2), ("R", 2, 1, 2),
    ]  # fmt: skip
    for number, row in enumerate(rows, 1):
        folder = RunFolder(tmp_path / "runs" / "smollm2" / f"{row['arm']}-0")
        sampled = [r.sampled_tokens for n in range(1, row["round"] + 1) for r in folder.round(n).rollouts]
        assert row["tokens"] == sum(sampled) > 0, number
    assert rows[2]["tokens"] > rows[1]["tokens"]
    said = capsys.readouterr().out
    assert "| arm | round | seeds | tokens so far | pairs | at 1 | greedily | at best | less the vote | maj@2 |" in said
    assert said.count("\n| R | ") == 2
