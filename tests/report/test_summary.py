"""What `genius-lite eval` tells, and a run at its end."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from genius_lite.recipe import TaskSource
from genius_lite.report.summary import choice_lines, print_results, print_summary, verdict
from genius_lite.results.evaluation import Commonest, Interval, McNemar, TaskResult
from genius_lite.results.rounds import RoundReport, Summary
from genius_lite.text import gain

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


def test_what_was_not_sampled_has_no_temperature(capsys):
    print_results(["m"], [[RESULT]], SOURCES, Console(width=200))
    assert "Sampled at" not in capsys.readouterr().out
    print_results(["m"], [[replace(RESULT, sampled=SURE, temperature=0.7)]], SOURCES, Console(width=200))
    assert "Sampled at temperature 0.7." in capsys.readouterr().out


def test_names_and_whole_figures_fit_into_80_columns(capsys):
    wide = Interval(-0.078, -0.144, -0.111)
    task = TaskResult(
        "t", 200, 8, 0.1, 240.0, Interval(0.101, 0.081, 0.125), wide, wide, wide, {"8": wide}, {"8": wide},
        greedy_gain=wide, sampled_gain=wide, judged_gain=wide, mcnemar=McNemar(9, 12, 0.603),
    )  # fmt: skip
    answers = [Commonest(answer, 1.0) for answer in ("x" * 40, "\u65e5\u672c\u8a9e" * 9, 'A" 9% "B')]
    rows = [[replace(task, commonest=answer)] for answer in answers]
    print_results([f"m{n}" for n in range(3)], rows, SOURCES, Console(width=80))
    out = capsys.readouterr().out
    assert max(cell_len(line) for line in out.splitlines()) <= 80
    assert len(re.findall(r"greedy p +0\.603 *\n", out)) == 3
    assert len(re.findall(r"length +240 tokens *\n", out)) == 3, "a length has no p"
    assert '100% "xxxxxxxx..."' in out
    assert "100% \"A' 9% 'B\"" in out
    names = ["a/model-with-a-name-of-some-length-Q4_K_M.gguf", "runs/another-one, round 3"]
    print_results(names, [[task], [task]], SOURCES, Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\u2026" not in out, "nothing is cut"
    for told in ("model-with", "another-one", "10.1% [8.1, 12.5]", "-7.8 [-14.4, -11.1]", "greedy p", "0.603", "10%"):
        assert told in out


def _run(*gains: Interval, best: int = 1) -> Summary:
    """A run of one round, with a task for each gain."""
    tasks = [
        TaskResult(f"t{n}", 50, 1, 0.0, 5.0, SURE, SURE, Interval(0.5, 0.4, 0.6), judged_gain=gain)
        for n, gain in enumerate(gains)
    ]
    return Summary("runs/r", "runs/r/export/m.gguf", best, None, False, 9, 0, [RoundReport(1, evaluation=tasks)])


BETTER, WORSE, SAME = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.01, -0.1, 0.1)


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ([BETTER], "Better than the base model on t0 (50.0 % right, +20.0 [+10.0, +30.0] points)."),
        ([SAME], "Not told apart from the base model on t0 (50.0 % right, +1.0 [−10.0, +10.0] points)."),
        (
            [SAME, BETTER, WORSE, BETTER],
            "Better than the base model on t1 (50.0 % right, +20.0 [+10.0, +30.0] points), "
            "t3 (50.0 % right, +20.0 [+10.0, +30.0] points); "
            "worse on t2 (50.0 % right, −20.0 [−30.0, −10.0] points); "
            "not told apart on t0.",
        ),
        ([], "Whether answers became better was not measured; problems with known answers tell it (evaluate.tasks)."),
    ],
)
def test_one_sentence_says_whether_answers_became_better(gains, sentence, capsys):
    assert verdict(_run(*gains)) == sentence
    print_summary(_run(*gains), Console(width=1000))
    assert sentence.replace("−", "-").replace(" %", "%") in capsys.readouterr().out.splitlines()


def test_where_the_base_model_is_the_best_nothing_is_said_of_a_round(capsys):
    assert verdict(_run(BETTER, best=0)) == ""
    print_summary(_run(BETTER, best=0), Console(width=1000))
    assert "No round was let pass that is not worse than the base model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sampled", "greedy", "judged", "begins"),
    [
        (BETTER, SAME, SAME, "Better than the base model when sampled on t ("),
        (BETTER, WORSE, SAME, "Not told apart from"),  # a part of the answers became worse
        (BETTER, SAME, BETTER, "Better than the base model on t ("),
        (SAME, BETTER, SAME, "Not told apart from"),
        (BETTER, WORSE, WORSE, "Worse than"),
        (WORSE, SAME, SAME, "Worse than the base model when sampled on t ("),
        (WORSE, BETTER, SAME, "Not told apart from"),
    ],
)
def test_what_only_sampled_answers_show_is_said_so_beside_the_greedy_ones(sampled, greedy, judged, begins):
    of_kinds = {"sampled_gain": sampled, "greedy_gain": greedy, "judged_gain": judged}
    task = TaskResult("t", 50, 4, 0.0, 5.0, SURE, Interval(0.3, 0.2, 0.4), Interval(0.5, 0.4, 0.6), **of_kinds)
    run = Summary("runs/r", "m.gguf", 1, None, False, 9, 0, [RoundReport(1, evaluation=[task])])
    assert verdict(run).startswith(begins)
    beside = f"; sampled {gain(sampled)}, greedily {gain(greedy)})."
    of_two_ways = {sampled.estimate > 0, greedy.estimate > 0} == {True, False} or "Not told" in begins
    assert verdict(run).endswith(beside) == (of_two_ways and "when sampled" not in begins), verdict(run)
    if "Better than the base model when sampled" in begins:
        figures = "(30.0 % right at temperature 1, +20.0 [+10.0, +30.0] points; greedily +1.0 [−10.0, +10.0])"
        assert verdict(run) == f"Better than the base model when sampled on t {figures}."


def test_where_a_better_mean_hides_worse_likeliest_answers_both_are_told():
    of_kinds = {"sampled_gain": BETTER, "greedy_gain": WORSE, "judged_gain": BETTER}
    task = TaskResult("t", 50, 4, 0.0, 5.0, SURE, SURE, SURE, **of_kinds)
    told = verdict(Summary("r", "m.gguf", 1, None, False, 9, 0, [RoundReport(1, evaluation=[task])]))
    assert told.endswith("points; sampled +20.0 [+10.0, +30.0], greedily −20.0 [−30.0, −10.0]).")


@pytest.mark.parametrize(("halted", "passed"), [(True, "the guard let pass and "), (False, "")])
def test_a_later_round_that_the_guard_halted_is_not_called_worse(halted, passed):
    run = Summary("r", "m.gguf", 1, None, halted, 9, 0, [RoundReport(1, score=0.5), RoundReport(2, score=0.4)])
    assert choice_lines(run) == [f"Round 1 of 2 is the latest that {passed}is not worse than one before it."]


@pytest.mark.parametrize(("halted", "latest"), [(True, "latest that the guard let pass"), (False, "latest one")])
def test_rounds_that_nothing_was_measured_of_are_not_compared(halted, latest):
    run = Summary("r", "m.gguf", 1, None, halted, 9, 0, [RoundReport(1), RoundReport(2)])
    assert choice_lines(run) == [f"Round 1 of 2 is the {latest}."]
