"""One reader of run folders: typed, and at ease with a run that grows."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from genius_lite.errors import UserError
from genius_lite.progress import Stage
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.reader import RoundFolder, RunFolder
from tests.support.runs import rollout, write_run


@pytest.fixture
def run(tmp_path, tiny_llama) -> RunFolder:
    return RunFolder(write_run(tmp_path / "run", tiny_llama, [rollout(f"question {n}") for n in range(10)], held_out=1))


def test_a_folder_without_a_recipe_is_no_run(tmp_path):
    (tmp_path / "recipe.json").write_text("[1, 2]")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is no run folder; name the `out` of a recipe"):
            RunFolder(path)
    (other := tmp_path / "other").mkdir()
    (other / "data").symlink_to(tmp_path)  # which nobody is to replace
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder(other)


def test_checksums_that_are_no_text_are_nobodys(run):
    (run.path / "export").mkdir()
    (run.path / "export" / "SHA256SUMS").write_bytes(b"12ab  m.gguf\n\xec\xff\n")
    assert run.checksums["m.gguf"] == "12ab"


def test_what_is_there_is_typed_and_what_is_not_there_yet_is_nothing(run):
    assert (run.imported, run.queries, run.searched, run.best, run.summary, run.exported) == (
        True,
        11,
        10,
        None,
        None,
        [],
    )
    (first,) = run.rounds
    assert (first.number, first.report, first.training, first.quantized, first.responses) == (1, None, None, None, [])
    assert [first.done(stage) for stage in (Stage.ROLLOUTS, Stage.TRAIN, Stage.EVALUATE)] == [True, False, False]
    assert run.round(2).made() == RoundReport(2)
    made = first.made()
    assert made.rollouts and (made.rollouts.queries, made.rollouts.candidates, made.pairs) == (10, 40, 20)
    assert made.rollouts.tokens_per_s == pytest.approx(30)
    assert run.base.path == run.own.path == run.path / "round-0"


@pytest.mark.parametrize("damage", [{"round_queries": "four"}, {"round_queries": -4}, {"pairs": "votes"}])
def test_small_rounds_and_votes_that_are_none_are_a_line(run, damage):
    recipe = run.path / "recipe.json"
    recipe.write_text(json.dumps(run.recipe | damage))
    with pytest.raises(UserError, match=f"{recipe}.*{next(iter(damage))}"):
        RunFolder(run.path)


def test_a_log_that_grows_gives_its_whole_records_one_at_a_time(run):
    log = run.round(1).path / "rollouts.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    assert len(run.round(1).rollouts) == 9
    assert run.round(1).rollouts[8].query.prompt == "question 8"
    shutil.rmtree(run.round(1).path)
    assert (run.rounds, list(RoundFolder(1, run.path / "round-1").rollouts)) == ([], [])


def test_parts_of_an_interrupted_stage_are_one(run):
    with (run.round(1).path / "timings.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "rollouts", "seconds": 4.0, "amount": 60, "sampler": {"peak": 9}}) + "\n")
        file.write('{"stage": "rollguts", "seconds": 4.0, "amount": 60}\n')  # of nobody's making
        file.write('{"stage": "tr')
    (total,) = run.round(1).totals
    assert (total.stage, total.seconds, total.amount, total.sampler and total.sampler.peak) == ("rollouts", 6.0, 120, 9)
    assert run.stage_seconds() == {Stage.ROLLOUTS: 6.0, Stage.PAIRS: 0.0}


def test_a_stage_that_others_had_begun_takes_as_long_as_all_of_it(run):
    with (run.round(1).path / "timings.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "rollouts", "seconds": 0.0, "amount": 0, "untimed": 120}) + "\n")
    assert run.stage_seconds()[Stage.ROLLOUTS] == 6.0, "60 of 180 tokens took two seconds"
    assert run.round(1).totals[0].seconds == 2.0


def test_the_evaluation_of_the_base_model_tells_of_a_rounds_without_its_other_temperatures(run):
    (run.own.path / "evaluation").mkdir(parents=True)
    rows = [{"seconds": 5.0, "parts": {"tasks": 5.0}}, {"seconds": 40.0, "parts": {"other temperatures": 40.0}}]
    lines = (json.dumps({"stage": "evaluate", "amount": 10, **row}) for row in rows)
    (run.own.path / "timings.jsonl").write_text("\n".join(lines) + "\n")
    assert run.stage_seconds()[Stage.EVALUATE] == 5.0
    assert run.own.totals[0].seconds == 45.0


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_document_that_is_not_whole_is_not_there(run, content):
    (run.round(1).path / "report.json").write_text(content)
    assert run.round(1).report is None and run.reports == []


def test_a_document_of_another_version_is_named(run):
    (run.round(1).path / "report.json").write_text('{"round": 1, "training": {"loss": 0.6}}')
    with pytest.raises(UserError, match=r"report\.json was made by another version of genius-lite, which can read it"):
        _ = run.reports


def test_a_folder_of_somebody_else_is_named_as_such(tmp_path, monkeypatch):
    """Docker's root makes folders that the host's user may not look into."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="permission denied; it is for its owner alone"):
        RunFolder(tmp_path)
