"""What `genius-lite eval` tells."""

from __future__ import annotations

import pytest
from rich.console import Console

from genius_lite.recipe import TaskSource
from genius_lite.report.summary import print_results
from genius_lite.results.evaluation import Interval, TaskResult

SURE = Interval(1.0, 0.2, 1.0)
RESULT = TaskResult("t", 1, 0, 0.0, 5.0, SURE, None, SURE)
SOURCES = [TaskSource(source="t.jsonl"), TaskSource(source="reasoning_gym:chain_sum")]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["/home/somebody/models/of all kinds/base.gguf", "runs/quickstart, round 2"], ["base.gguf", "quickstart,"]),
        (["a/m.gguf", "b/m.gguf"], ["a/m.gguf", "b/m.gguf"]),
    ],
)
def test_models_are_told_apart_in_a_line_each_and_checkers_are_named(names, shown, capsys):
    print_results(names, [[RESULT], [RESULT]], SOURCES, Console(width=80))
    out = capsys.readouterr().out
    assert "t: 1 problem" in [line.strip() for line in out.splitlines()]
    of_models = [line.split()[0] for line in out.splitlines() if " greedy " in line]
    assert of_models == shown
    assert "t.jsonl: answers are compared by the checker `exact`." in out
    assert "reasoning_gym" not in out, "it has its own"
