from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.evaluate.record import write_evaluation
from genius_lite.report import page
from genius_lite.report.gather import RoundData, RunData, gather
from genius_lite.report.headline import Change, changes, compared, notes, outcome
from genius_lite.report.page import markdown, write_report, write_report_if_possible
from genius_lite.report.summary import kept_lines
from genius_lite.report.tables import (
    beside_table,
    guard_table,
    kept_table,
    pairs_table,
    rounds_table,
    stages_table,
    task_table,
)
from genius_lite.report.terminal import TerminalProgress
from genius_lite.results.evaluation import GREEDY, Answers, Response, Signals
from genius_lite.results.rounds import Quantized, RoundReport
from genius_lite.text import accuracy, gain, in_ascii, percent
from tests.support.cli import genius
from tests.support.runs import rollout, write_lines, write_run


@pytest.fixture
def run(tmp_path, tiny_llama):
    return write_run(tmp_path / "run", tiny_llama, [rollout(f"question {n}") for n in range(10)], held_out=1)


def rows(table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.rows}


def test_an_unfinished_run_says_where_it_is(run):
    here, base = run / "round-1", run / "round-0" / "evaluation"
    base.mkdir(parents=True)
    stages = [("pairs.jsonl", "train"), ("adapter", "merge"), ("policy.gguf", "evaluate")]
    assert gather(run).now == "not finished: round 1, train"
    for name, following in stages[1:]:
        (here / name).mkdir()
        assert gather(run).now == f"not finished: round 1, {following}"
    shutil.rmtree(here / "adapter")
    (here / "pairs.jsonl").unlink()
    assert gather(run).now == "not finished: round 1, pairs"
    log = here / "rollouts.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    assert gather(run).now == "not finished: round 1, rollouts of 3 of 10 queries"
    shutil.rmtree(here)
    assert gather(run).now == "not finished: round 1, rollouts of 0 of 10 queries"
    base.rmdir()
    assert gather(run).now == "not finished: base model, evaluate"
    assert "What follows is what there is so far" in outcome(gather(run))
    shutil.rmtree(run / "hf-checkpoint")
    assert gather(run).now == "not finished: base model, import"


def test_at_every_stage_a_report_can_be_written(run, tmp_path):
    for name in (
        "nothing",
        "pairs.jsonl",
        "filtered.json",
        "timings.jsonl",
        "rollouts.jsonl",
        "../round-1",
        "../hf-checkpoint",
    ):
        gone = run / "round-1" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
        for file in write_report(run, tmp_path / "out"):
            assert file.stat().st_size > 1000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command_writes_a_report_or_says_why_not(run, tmp_path):
    written = genius("report", run, "--to", tmp_path / "out", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert written.stdout.split() == [str(tmp_path / "out" / name) for name in ("report.html", "report.md")]
    assert "The trees of all 10 queries" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "file").touch()
    refused = genius("report", run, "--to", tmp_path / "file", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "name another folder with --to" in refused.stderr


def test_a_report_that_fails_is_no_fault_of_the_run(run):
    (run / "report.html.partial").mkdir()
    said = io.StringIO()
    write_report_if_possible(run, TerminalProgress(Console(file=said, width=500)))
    assert said.getvalue().startswith("warning: no report (")
    assert f"genius-lite report {run} tries again" in said.getvalue()


def test_a_report_that_a_full_disk_cuts_short_leaves_nothing(run):
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    refused = genius("report", run, cwd=run.parent, before=full)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert not [*run.rglob("*.partial")]


def test_the_figures_of_an_unfinished_round(run):
    data = gather(run)
    found = rows(rounds_table(data))
    # Of each rollout four candidates: 4 + 3, 4 + 3, 6 + 3 and three times 5 tokens, of which three end responses.
    assert found["Candidates"] == ["40"]
    assert found["Sampled tokens"] == [str(10 * (4 + 3 + 4 + 3 + 6 + 3 + 3 * 5))]
    assert found["Mean foresight value, nats per token"] == ["−0.163"]
    assert found["Candidates whose response ended"] == ["75 %"]
    assert found["Tokens per second"] == ["30"]
    assert found["Learned margin, nats"] == ["–"]
    found = rows(pairs_table(data))
    assert (found["Found"], found["Left out: values too close (gap)"], found["Kept"]) == (["23"], ["3"], ["20"])
    assert found["Mean calibration weight w"] == ["0.976"]  # of 1 and exp(-0.05)
    assert found["Pairs with w below 1"] == ["50 %"]
    assert len(data.explorer.queries) == 10
    found = rows(stages_table(data))
    assert found["round 1: rollouts"][:3] == ["2.0 s", "100 %", "30 tokens/s"]


def test_a_weight_that_the_loss_does_not_use_is_not_said(run):
    recipe = run / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"loss": "aco"', '"loss": "sft"'))
    data = gather(run)
    table = pairs_table(data)
    assert not {"Mean calibration weight w", "Pairs with w below 1"} & {*rows(table)} and not table.note
    trees = data.explorer.rounds[0]["trees"].values()
    assert {s["pair"]["weight"] for tree in trees for s in tree["steps"] if s["pair"]} == {None}


def test_what_votes_weigh_is_said(run):
    assert "Mean lead of the vote" not in rows(pairs_table(gather(run)))
    recipe, pairs = run / "recipe.json", run / "round-1" / "pairs.jsonl"
    recipe.write_text(recipe.read_text().replace('"weigh": "equally"', '"weigh": "votes"'))
    led = [json.loads(line) | {"lead": 0.25 + n % 2 / 2} for n, line in enumerate(pairs.read_text().splitlines())]
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in led))
    data = gather(run)
    assert rows(pairs_table(data))["Mean lead of the vote"] == ["0.500"]
    shown = [
        s["pair"]["lead"] for tree in data.explorer.rounds[0]["trees"].values() for s in tree["steps"] if s["pair"]
    ]
    assert {*shown} == {0.25, 0.75}


def test_pieces_of_an_interrupted_stage_are_put_together(run):
    with (run / "round-1" / "timings.jsonl").open("a") as file:
        line = {
            "stage": "rollouts",
            "seconds": 4.0,
            "amount": 60,
            "peak_bytes": 7_000_000,
            "sampler": {"peak": 9_000_000},
        }
        file.write(json.dumps(line) + "\n")
        file.write('{"stage": "tr')
    found = rows(stages_table(gather(run)))
    assert found["round 1: rollouts"] == ["6.0 s", "100 %", "20 tokens/s", "7.0 MB", "9.0 MB"]


def answer(here: Path, right: int) -> None:
    """What a policy answered to a task of 40 problems: so many greedy responses are right, and all of the others."""
    folder = here / "evaluation"
    folder.mkdir(parents=True)
    scored = [(n, sample) for n in range(40) for sample in (GREEDY, 0)]
    write_lines(
        folder / "responses.jsonl",
        [Response("sums", f"p{n}", s, "", 5, "end", float(n < right or s == 0)) for n, s in scored],
    )


def only_task(data: RunData) -> list[Change]:
    (answered,) = data.by_task.values()
    return changes(data, *compared(data, answered))


def test_the_headline_sets_a_round_beside_the_base(run):
    answer(run / "round-0", 4)
    found = only_task(gather(run))
    assert [change.verdict for change in found] == ["Measured before training only, so far."] * 3
    assert [change.before.estimate for change in found] == [0.55, 1.0, 0.1]
    assert [change.after for change in found] == [None] * 3
    told = [line for line in markdown(gather(run)).splitlines() if line.startswith("- ")]
    assert [line.partition(": ")[2].partition(" [")[0] for line in told] == ["55.0 %", "100.0 %", "10.0 %"]
    assert not any(" to " in line for line in told)
    answer(run / "round-1", 30)
    judged, sampled, greedy = only_task(gather(run))
    assert "## sums: 40 problems" in markdown(gather(run)).splitlines()
    assert (greedy.before.estimate, greedy.after.estimate, greedy.tone) == (0.1, 0.75, "better")
    assert gain(greedy.gain).startswith("+65.0 [+")
    assert (sampled.before.estimate, sampled.after.estimate, sampled.tone) == (1.0, 1.0, "same")
    assert (judged.before.estimate, judged.after.estimate, judged.tone) == (0.55, 0.875, "better")


def test_rounds_are_told_against_the_base_in_their_types_and_the_users_file_stands_beside_it(run):
    answer(run / "round-0", 4)
    assert gather(run).own is None
    answer(run / "rounded", 8)
    answer(run / "round-1", 30)
    (run / "rounded" / "timings.jsonl").write_text('{"stage": "merge", "seconds": 3.0, "amount": 1}\n')
    data = gather(run)
    table = task_table(data, data.by_task["sums"])
    assert {name: cells[2] for name, cells in rows(table).items()} == {
        "your file": accuracy(data.own.tasks[0].greedy),
        "base model": accuracy(data.base.tasks[0].greedy),
        "round 1": accuracy(data.rounds[0].tasks[0].greedy),
    }
    _, _, greedy = only_task(data)
    assert (greedy.before.estimate, greedy.after.estimate) == (0.2, 0.75)
    assert gain(greedy.gain).startswith("+55.0 [+")
    assert rows(stages_table(data))["base model: merge"][0] == "3.0 s"


SCORED = {"questions": 8, "learned": 4.0, "margin": 3.8, "kept": 0.95, "error": 0.02}


@pytest.mark.parametrize(
    ("made", "lines", "table"),
    [
        (
            {"kept": None, "matrices": {}, "widened": False, "scored": None},
            ["Q8_0: there is no update to keep"],
            {"Share of the update, all matrices": ["–"]},
        ),
        (
            {"kept": 0.987, "matrices": {"q": 0.99, "k": 0.5}, "widened": False, "scored": None},
            ["Q8_0: keeps 98.7 % of the update, 50 % at least of each matrix"],
            {"Share of the update, all matrices": ["99 %"], "Least of all matrices: k": ["50 %"]},
        ),
        (
            {"kept": 1.0, "matrices": {"q": 1.0}, "widened": False, "scored": SCORED},
            [
                "Q8_0: keeps 100.0 % of the update, 100 % at least of each matrix",
                "Q8_0: llama.cpp sees a margin of +3.80 nats, with the adapter at run time +4.00: 95% +- 2%, "
                "on 8 questions",
            ],
            {
                "Share of the update, all matrices": ["100 %"],
                "Least of all matrices: q": ["100 %"],
                "Questions that llama.cpp scored, a pair each": ["8"],
                "Learned margin with the adapter at run time, nats": ["+4.00"],
                "Learned margin with this file, nats": ["+3.80"],
                "Its share, with one standard error": ["95 % ± 2"],
            },
        ),
        (  # the only question, on which nothing was learned
            {
                "kept": 1.0,
                "matrices": {"q": 1.0},
                "widened": False,
                "scored": {**SCORED, "questions": 1, "kept": None, "error": None},
            },
            ["Q8_0: keeps 100.0 % of the update, 100 % at least of each matrix"],
            {
                "Share of the update, all matrices": ["100 %"],
                "Least of all matrices: q": ["100 %"],
                "Questions that llama.cpp scored, a pair each": ["1"],
                "Learned margin with the adapter at run time, nats": ["+4.00"],
                "Learned margin with this file, nats": ["+3.80"],
                "Its share, with one standard error": ["–"],
            },
        ),
    ],
)
def test_what_a_file_keeps_is_said_and_shown(made, lines, table):
    quantized = msgspec.convert({"type": "Q8_0", "keeps": True, "error": 0.01, "sha256": "0" * 64, **made}, Quantized)
    assert kept_lines(quantized) == lines
    shown = kept_table(RoundData("round 1", RoundReport(1, quantized=quantized)), quantized, 0.9)
    assert shown.title == "What Q8_0 keeps, round 1"
    assert "At least 90 % of the update is to be kept" in shown.note
    assert rows(shown) == table


@pytest.mark.parametrize(
    ("sampled", "greedy", "entropy", "warned"),
    [(30, 10, 0.2, True), (30, 30, 0.2, False), (10, 10, 0.2, False), (30, 10, 0.4, False)],
)
def test_a_gain_that_a_lower_temperature_might_give_is_called_one(run, sampled, greedy, entropy, warned):
    """It needs answers that are better only where they are sampled, from a model that became surer."""
    for number, right, likeliest, nats in ((0, 10, 10, 0.4), (1, sampled, greedy, entropy)):
        folder = run / f"round-{number}" / "evaluation"
        folder.mkdir(parents=True)
        answers = [
            Response("sums", f"p{n}", sample, "", 5, "end", float(n < count))
            for n in range(40)
            for sample, count in ((GREEDY, likeliest), (0, right))
        ]
        answers = [Answers(one.task, one.problem, [one]) for one in answers]
        write_evaluation(folder, answers, Signals(nats, 0.9, 0.0, 20.0, 1.0, 0.5, 0.5, 1.0, 0.0, 8))
    assert any("lower temperature" in note for note in notes(gather(run))) == warned
    write_report(run, run)
    for name in ("report.md", "report.html"):
        assert ("lower temperature" in (run / name).read_text(encoding="utf-8")) == warned


@pytest.mark.parametrize(
    ("before", "after", "answer", "warned"),
    [
        (12, 20, "B", True),  # a fifth more
        (12, 19, "B", False),
        (35, 40, "B", False),
        (0, 20, "B", True),  # the base model states none
        (0, 19, "B", False),
        (12, 30, "\N{HEBREW LETTER BET}", True),
    ],
)
def test_one_answer_to_everything_is_called_one(run, before, after, answer, warned):
    """Of 40 problems whose answer is B as often as not, B is right in half: a gain that knows nothing."""
    for number, alike in ((0, before), (1, after)):
        folder = run / f"round-{number}" / "evaluation"
        folder.mkdir(parents=True)
        given = [answer if n < alike else f"{n}" if alike else None for n in range(40)]
        answers = [
            Answers("# science", f"p{n}", [Response("# science", f"p{n}", GREEDY, "", 5, "end", float(n % 2), one)])
            for n, one in enumerate(given)
        ]
        write_evaluation(folder, answers, Signals(0.4, 0.9, 0.0, 20.0, 1.0, 0.5, 0.5, 1.0, 0.0, 8))
    found = gather(run)
    shares = [in_ascii(percent(alike / 40)) for alike in (before, after)]
    was = f'the base model\'s was {shares[0]} "{answer}"' if before else "the base model states hardly any"
    said = f'On # science the commonest answer is {shares[1]} "{answer}" of those stated ({was}): a gain may'
    assert any(in_ascii(note).startswith(said) for note in notes(found)) == warned, said
    table = beside_table(found.by_task["# science"])
    assert [in_ascii(row[-1]) for row in table.rows][1] == f'{shares[1]} "{answer}"'
    write_report(run, run)
    for name in ("report.md", "report.html"):
        assert ("one answer to everything" in (run / name).read_text(encoding="utf-8")) == warned


def test_limits_say_on_which_side_they_lie_before_any_round_was_read(run):
    found = {row[0].partition(":")[0]: row[1:3] for row in guard_table(gather(run)).rows}
    assert found["entropy"] == ["below 0.5", "below 0.2"]
    assert found["kl"][0].startswith("above ")


def test_what_cannot_be_read_is_not_said_to_be_unwritable(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file cannot be written: .*; name another folder with --to"):
        write_report(run, tmp_path / "file")

    def refused(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "pairs.jsonl"))

    monkeypatch.setattr(page, "gather", refused)
    with pytest.raises(PermissionError):
        write_report(run, tmp_path / "out")
