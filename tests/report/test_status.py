from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import filelock
import msgspec
import pytest
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.progress import Stage
from genius_lite.report.state import RunState, Work
from genius_lite.report.status import look, print_status
from genius_lite.results.evaluation import GREEDY, Response
from genius_lite.results.rounds import Summary
from genius_lite.rundir.reader import RunFolder
from tests.support.reports import REPORT, SIGNALS, TRAINING


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else msgspec.json.encode(content).decode())


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of two rounds that was interrupted while it searched the queries of the second."""
    held_out = {"learner": {"holdout": 0.1}, "evaluate": {"queries": 16}}
    asked = {"queries": "13, 0123456789abcdef", "round_queries": None}
    _write(tmp_path / "recipe.json", {"rounds": 2, **asked, **held_out})
    _write(tmp_path / "lock", "")
    (tmp_path / "hf-checkpoint").mkdir()
    (tmp_path / "round-0/evaluation").mkdir(parents=True)
    _write(tmp_path / "round-0/evaluation/signals.json", msgspec.structs.replace(SIGNALS, agreement=0.7))
    first, second = tmp_path / "round-1", tmp_path / "round-2"
    for name in ("pairs.jsonl", "policy.gguf"):
        _write(first / name, "")
    _write(first / "evaluation/signals.json", SIGNALS)
    _write(first / "adapter/train.json", TRAINING)
    _write(first / "quantized.json", REPORT.quantized)
    timings = [("rollouts", 40.0), ("rollouts", 20.0), ("train", 99.0), ("merge", 7.0), ("evaluate", 5.0)]
    lines = [json.dumps({"stage": stage, "seconds": seconds, "amount": 1}) for stage, seconds in timings]
    _write(first / "timings.jsonl", "\n".join(lines) + '\n{"stage": "eval')
    _write(first / "report.json", msgspec.structs.replace(REPORT, round=1))
    _write(second / "rollouts.jsonl", '{"query": 1}\n{"query": 2}\n{"query": 3, "st')
    return tmp_path


def _leave_board(folder: Path, **options) -> None:
    board = RunState(
        **{"out": "elsewhere", "pid": 1, "host": platform.node(), "number": 2, "kind": Stage.ROLLOUTS, **options}
    )
    (folder / "progress.json").write_bytes(msgspec.json.encode(board))


def test_from_the_records_alone(folder):
    found = look(folder)
    board = found.board
    assert (found.state, found.exported) == ("interrupted", None)
    assert found.meaning == "no process works on it; the same command goes on from here"  # as after merge-shards
    assert (board.out, board.number, board.kind, board.rounds) == (str(folder), 2, "rollouts", 2)
    assert board.work == Work("rollouts", "queries", 12, 2)
    assert [(row["round"], row["score"]) for row in board.rows] == [(0, 0.5), (1, 0.6)]
    assert board.best == 0  # round 1 was halted by the guard
    assert (board.lights["kl"], board.lights["value"]) == ("halt", "ok")
    assert RunFolder(folder).stage_seconds() == {
        "rollouts": 60.0,
        "pairs": 0.0,
        "train": 99.0,
        "merge": 7.0,
        "evaluate": 5.0,
    }


@pytest.mark.parametrize(
    ("removed", "place"),
    [
        ("round-2", (2, "rollouts")),
        ("round-1/report.json", (1, "evaluate")),
        ("round-1/policy.gguf", (1, "merge")),
        ("round-1/adapter", (1, "train")),
        ("round-1/pairs.jsonl", (1, "rollouts")),
        ("round-0/evaluation", (0, "evaluate")),
        ("hf-checkpoint", (0, "import")),
    ],
)
def test_the_stage_that_comes_next_is_the_first_that_is_not_there(folder, removed, place):
    later = ["round-2", "round-1/report.json", "round-1/policy.gguf", "round-1/adapter", "round-1/pairs.jsonl"]
    for name in later[: later.index(removed) + 1] if removed in later else [*later, removed]:
        (folder / name).rename(folder / f"gone-{name.replace('/', '-')}")
    board = look(folder).board
    assert (board.number, board.kind) == place


def test_once_every_query_that_is_not_held_out_is_searched_pairs_come_next(folder):
    (folder / "round-2/rollouts.jsonl").write_text("".join(f'{{"query": {n}}}\n' for n in range(11)))
    assert look(folder).board.kind == "rollouts"
    _write(folder / "round-2/failed.jsonl", '{"query_id": "11"}\n')
    assert look(folder).board.kind == "pairs"


def test_it_goes_on_where_its_process_lives_and_holds_the_lock(folder):
    work = Work("round 2: rollouts", "queries", 12, 2.5, 0.1, 95.0)
    _leave_board(folder, pid=os.getpid(), work=work, rows=[{"round": 0, "score": 0.7}], stopping=True)
    assert look(folder).state == "interrupted"
    with filelock.FileLock(folder / "lock"):
        found = look(folder)
        assert (found.state, found.board.work, found.board.stopping) == ("running", work, True)
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        _leave_board(folder, pid=int(gone.stdout))
        assert look(folder).state == "interrupted"
        _leave_board(folder, pid=int(gone.stdout), host="another")
        assert look(folder).state == "running"
    _leave_board(folder, ended="stopped on request", command="genius-lite run r.yaml", out=str(folder))
    found = look(folder)
    assert found.meaning == "stopped on request; the same command goes on from here: genius-lite run r.yaml"
    assert json.loads(json.dumps(found.as_dict()))["state"] == "interrupted"
    _leave_board(folder, ended="no pair", stuck=True, command="genius-lite run r.yaml", out=str(folder))
    assert (found := look(folder)).meaning == "no pair", "the same command would end likewise"
    assert found.state == "failed"
    _leave_board(folder, ended="stopped on request", command="genius-lite run r.yaml", out=str(folder))
    moved = folder.rename(folder.with_name("the moved"))  # the command alone would begin a run where it was
    assert look(moved).meaning.endswith(f"from here: genius-lite run r.yaml --out '{moved}'")


def test_looking_does_not_keep_a_run_from_starting_and_changes_nothing(folder):
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = state()
    look(folder)
    assert state() == before
    with filelock.FileLock(folder / "lock", timeout=0):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"rounds": [', "\x00\xff"])
def test_files_that_are_not_whole_say_nothing(folder, content):
    for name in ("progress.json", "round-1/quantized.json", "round-1/adapter/train.json", "summary.json"):
        (folder / name).write_bytes(content.encode("latin-1"))
    found = look(folder)
    assert (found.state, found.board.kind) == ("interrupted", "rollouts")
    assert found.damaged == ["progress.json", "summary.json", "round-1/quantized.json", "round-1/adapter/train.json"]
    assert RunFolder(folder).stage_seconds()["merge"] == 7.0
    (folder / "progress.json").write_text('{"rows": 3}')  # of another version
    assert look(folder).board.kind == "rollouts"


@pytest.mark.parametrize(
    "left", [{"rows": [{}]}, {"rows": [{"round": 0, "score": "x"}]}, {"rows": [{"round": "x"}]}, {"pid": 10**30}]
)
def test_what_no_process_of_a_run_leaves_behind_says_nothing(folder, left, capsys):
    """Each was a traceback."""
    _leave_board(folder)
    board = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(board | left))
    found = look(folder)
    print_status(found, Console(width=80))
    assert (found.state, found.board.rows[-1]["round"]) == ("interrupted", 1)


def test_no_interval_is_computed_to_say_where_a_run_stands(folder, monkeypatch):
    """Of hundreds of problems they take seconds, and a folder of runs is looked at as a whole."""
    response = Response("t", "p", GREEDY, "4", 2, "end", 1.0)
    (folder / "round-0/evaluation/responses.jsonl").write_bytes(msgspec.json.encode(response) + b"\n")
    monkeypatch.setattr("genius_lite.evaluate.results._result", lambda *_: pytest.fail("intervals are computed"))
    assert look(folder).board.best == 0
    _write(folder / "best.json", {"round": 1, "stopped": None})
    assert look(folder).board.best == 1, "the run has said so itself"


def test_a_finished_run_names_its_model(folder):
    _write(folder / "best.json", {"round": 0, "stopped": "the collapse guard halted round 1"})
    _write(folder / "export/m.gguf", "")
    summary = Summary("runs/x", "m.gguf", 0, "the collapse guard halted round 1", True, 13, 0, [])
    _write(folder / "summary.json", summary)
    found = look(folder)
    assert (found.state, found.meaning) == ("halted", "the collapse guard halted round 1")
    assert (found.exported, found.board.best) == (str(folder / "export/m.gguf"), 0)
    _write(folder / "summary.json", msgspec.structs.replace(summary, stopped=None, halted=False))
    assert (look(folder).state, look(folder).meaning) == ("finished", "all is done")


def test_a_shard_that_is_over_has_one_stage(folder, capsys):
    recipe = json.loads((folder / "recipe.json").read_text())
    _write(folder / "recipe.json", recipe | {"shard": {"part": "1/1", "round": 2, "model": "0" * 64}})
    (folder / "round-2/rollouts.jsonl").write_text("".join(f'{{"query": {n}}}\n' for n in range(12)))
    found = look(folder)
    assert (found.state, found.board.stages, found.as_dict()["shard"]) == ("finished", (Stage.ROLLOUTS,), True)
    print_status(found, Console(width=80))
    shown = capsys.readouterr().out
    assert "guard" not in shown, "no round is judged"
    place = shown.splitlines()[3]
    assert place.split() == ["round", "2", "of", "2", "✓", "rollouts"]


def test_another_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is no run folder; name the `out` of a recipe"):
            look(path)


def test_it_is_printed_in_80_columns(folder, capsys):
    from genius_lite.report.status import print_status

    print_status(look(folder), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("interrupted: no process works on it")
    assert any("2/12 queries" in line for line in lines)
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rounds": "2"}, "Expected `int`, got `str` - at `$.rounds`"),
        ({"rounds": None}, "Expected `int`"),
        ({"queries": "many"}, "at `$.queries`"),
        ({"learner": 3}, "at `$.learner`"),
        ({"learner": {}}, "has no learner.holdout"),
        ({"evaluate": {"queries": -1}}, "at `$.evaluate.queries`"),
    ],
)
def test_a_recipe_of_another_version_or_hand_is_one_line(folder, changed, line):
    recipe = json.loads((folder / "recipe.json").read_text())
    _write(folder / "recipe.json", recipe | changed)
    with pytest.raises(UserError) as e:
        look(folder)
    assert line in str(e.value)
    assert "\n" not in str(e.value)


def test_what_a_recipe_lacks_is_named(folder):
    for name in ("rounds", "queries"):
        recipe = json.loads((folder / "recipe.json").read_text())
        kept = recipe.pop(name)
        _write(folder / "recipe.json", recipe)
        with pytest.raises(UserError, match=f"has no {name}: another version"):
            look(folder)
        _write(folder / "recipe.json", recipe | {name: kept})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"rounds": NaN}', "9" * 6000, "null", "[]"])
def test_what_is_no_document_is_no_run_folder(folder, text):
    (folder / "recipe.json").write_text(text)
    with pytest.raises(UserError, match="is no run folder"):
        look(folder)


@pytest.mark.parametrize(
    "command", ["genius-lite run r.yaml; rm -rf ~", "rm -rf ~", "genius-lite 'run", "genius-lite $(x)"]
)
def test_a_strangers_command_is_not_given_for_pasting(folder, command):
    _leave_board(folder, command=command)
    assert look(folder).meaning == "its process is gone; the same command goes on from here"


@pytest.mark.parametrize("name", ["progress.json", "round-1/report.json", "lock"])
def test_a_pipe_is_a_line_and_no_wait(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} is neither file nor folder"):
        look(folder)
