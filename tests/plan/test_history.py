from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.plan.history import DoneStages, drop_rehearsal, look_back
from genius_lite.rundir.folder import open_folder, size_of

MINE = {"model": "a", "weights": None, "rounds": 1}


@pytest.fixture
def run(tmp_path):
    """A folder as a plan leaves it."""
    run = tmp_path / "run"
    with open_folder(run, MINE):
        (run / "hf-checkpoint").mkdir()
        (run / "timings.jsonl").write_text(json.dumps({"stage": "import", "seconds": 7.5, "amount": 1}) + "\n")
        (run / "rehearsal.json").write_text("{}")
    return run


def test_a_run_folder_says_what_is_done(run):
    assert look_back(run / "none", 2) == DoneStages()
    (run / "round-1" / "adapter").mkdir(parents=True)
    rows = [{"stage": "rollouts", "seconds": s, "amount": 4} for s in (3.0, 4.0)]  # it was interrupted once
    (run / "round-1" / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "round-1" / "pairs.jsonl").write_text("")
    (run / "round-2").mkdir()
    (run / "round-2" / "rollouts.jsonl").write_text("{}\n{}\n")
    found = look_back(run, 2)
    assert found.done.keys() == {("import", 0), ("rollouts", 1), ("pairs", 1), ("train", 1)}
    assert (found.mean_seconds("import"), found.mean_seconds("rollouts")) == (7.5, 7.0)
    assert found.mean_seconds("train") is None
    assert ([timing.amount for timing in found.timings("rollouts")], found.searched) == ([8], {2: 2})
    assert found.bytes == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())


def test_a_file_that_goes_while_a_folder_is_counted_is_passed_over(run, monkeypatch):
    """A run that goes on replaces its files at any time."""
    (goes := run / "progress.json.partial").write_text("x")
    whole, real = look_back(run, 1).bytes, Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        found = real(self, **options)
        if self == goes and options.get("follow_symlinks", True):  # not while links are looked for
            goes.unlink()  # just after it was seen
        return found

    monkeypatch.setattr(Path, "stat", stat)
    assert whole - look_back(run, 1).bytes <= 1
    monkeypatch.setattr(os, "walk", lambda run: [(str(run), [], [goes.name])])
    assert size_of(run) == 0


def test_a_plan_binds_nobody(run):
    changed = {**MINE, "rounds": 2}
    assert drop_rehearsal(run, changed)
    assert not drop_rehearsal(run, changed)
    assert json.loads((run / "recipe.json").read_text()) == changed
    assert (run / "hf-checkpoint").is_dir()
    assert not (run / "rehearsal.json").exists()
    with open_folder(run, changed):
        pass


def test_another_model_is_imported_anew(run):
    drop_rehearsal(run, {**MINE, "model": "b"})
    assert sorted(path.name for path in run.iterdir()) == ["lock", "recipe.json"]


def test_what_an_interrupted_rehearsal_left_goes(run):
    (run / "rehearsal").mkdir()
    assert not drop_rehearsal(run, MINE)
    assert not (run / "rehearsal").exists()
    assert (run / "rehearsal.json").exists()


@pytest.mark.parametrize("made", ["round-0", "best.json", "anything else"])
def test_a_run_is_no_plan(run, made):
    (run / made).mkdir()
    before = sorted(run.iterdir())
    drop_rehearsal(run, {**MINE, "rounds": 2})
    assert sorted(run.iterdir()) == before
    told = r"was made by another recipe .*; name another `out` \(--reuse .* takes there what stays the same\)"
    with pytest.raises(UserError, match=told), open_folder(run, {**MINE, "rounds": 2}):
        pass


def test_a_folder_in_use_is_left_alone(run):
    with open_folder(run, MINE), pytest.raises(UserError, match="in use"):
        drop_rehearsal(run, {**MINE, "rounds": 2})
