from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from genius_lite.errors import NonFiniteError, UserError
from genius_lite.records import Query
from genius_lite.rundir.disk import remove, scratch
from genius_lite.rundir.folder import RunDir, open_folder, write_json, write_text
from genius_lite.rundir.lines import RecordLog, read_records
from tests.support.faults import refuse

QUERY = Query("id", "text", [1, 2])
codec = st.characters(codec="utf-8")


def nested(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(codec), inner, max_size=3)


def test_a_stage_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        path = RunDir(tmp_path).build("stage", lambda p: calls.append(p) or p.mkdir() or (p / "f").write_text("x"))
    assert (path / "f").read_text() == "x"
    assert len(calls) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_a_file_where_a_folder_belongs_is_one_line(tmp_path):
    (tmp_path / "round-0").write_bytes(b"x")
    with pytest.raises(UserError, match="round-0 is a file where a folder belongs"):
        RunDir(tmp_path).round(0)


def test_a_failed_stage_leaves_no_result_and_starts_clean(tmp_path):
    def fail(path):
        path.mkdir()
        (path / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        RunDir(tmp_path).build("stage", fail)
    assert not (tmp_path / "stage").exists()
    built = RunDir(tmp_path).build("stage", lambda p: p.mkdir())
    assert list(built.iterdir()) == []


def test_a_fresh_volume_is_taken_and_a_folder_of_others_is_not(tmp_path):
    for name in ("volume", "theirs"):
        (tmp_path / name / "lost+found").mkdir(parents=True)
        (tmp_path / name / ".DS_Store").touch()
    with open_folder(tmp_path / "volume", {"seed": 0}) as folder:
        assert folder.path == tmp_path / "volume"
    (tmp_path / "theirs" / "notes.txt").touch()
    told = r"theirs holds other files \(notes\.txt\) and is no run folder"
    with pytest.raises(UserError, match=told), open_folder(tmp_path / "theirs", {"seed": 0}):
        pass


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RecordLog(path, Query)
    log.append(QUERY)
    log.append(QUERY)
    log.close()
    path.write_bytes(path.read_bytes()[:-5])
    again = RecordLog(path, Query)
    assert list(again.records) == [QUERY]
    again.append(QUERY)
    again.close()
    assert read_records(path, Query) == [QUERY, QUERY]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"id": 3}\n')
    with pytest.raises(UserError, match=r"log.jsonl:1: damaged record"):
        list(RecordLog(path, Query).records)


def test_a_folder_refuses_another_recipe_and_names_the_difference(tmp_path):
    with open_folder(tmp_path / "run", {"foresight": {"beams": 2}}):
        pass
    with (
        pytest.raises(UserError, match=r"another recipe \(foresight.beams: 2 there, 3 here\)"),
        open_folder(tmp_path / "run", {"foresight": {"beams": 3}}),
    ):
        pass


def test_a_folder_in_use_is_refused_and_freed_afterwards(tmp_path):
    with open_folder(tmp_path / "run", {}), pytest.raises(UserError, match="in use"), open_folder(tmp_path / "run", {}):
        pass
    with open_folder(tmp_path / "run", {}):
        pass


@pytest.mark.parametrize("name", ["lock", "lock.held", "recipe.json.partial"])
def test_a_link_in_a_folder_that_holds_nothing_else_is_a_line(tmp_path, name):
    """Of the lock it was a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("x")
    (tmp_path / "run" / name).symlink_to("../precious")
    with pytest.raises(UserError, match=f"{name} is a link"), open_folder(tmp_path / "run", {}):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no run folder"), open_folder(tmp_path, {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_space_is_checked_where_the_folder_will_be(tmp_path):
    with scratch(tmp_path / "not" / "there", 1, "it"):
        pass
    with pytest.raises(UserError, match=r"it needs 1000000\.0 GB"), scratch(tmp_path / "not" / "there", 10**15, "it"):
        pass


def test_json_has_no_word_that_is_no_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.inf, -math.inf, 0.1], "b": {"c": 2**70, "d": "NaN", "e": None}})
    text = (tmp_path / "x.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text) == {"a": [math.inf, -math.inf, 0.1], "b": {"c": 2**70, "d": "NaN", "e": None}}
    with pytest.raises(NonFiniteError, match=r"x.json, rounds, 1, margin: not a number"):
        write_json(tmp_path / "x.json", {"rounds": [{"margin": 1.0}, {"margin": math.nan}]})
    assert (tmp_path / "x.json").read_text() == text
    with pytest.raises(NonFiniteError, match=r"report\.json, value: not a number"):
        RunDir(tmp_path).build_json("report.json", lambda: {"value": math.nan})
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"number": "x"}', b"[]"])
def test_a_document_that_is_there_and_damaged_is_a_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json (is damaged; delete it to have it made anew|was made by another)"):
        RunDir(tmp_path).build_json("x.json", lambda: {"number": 1}, _Number)
    assert RunDir(tmp_path).build_json("y.json", lambda: {"number": 1}, _Number) == _Number(1)


class _Number(msgspec.Struct):
    number: int


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(codec), nested))
def test_json_is_read_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    for indent in (0, 2):
        write_json(path, value, indent)
        assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == value


class RunFolder(RuleBasedStateMachine):
    """A run folder in which stages are built, and processes end at any point."""

    def __init__(self):
        super().__init__()
        self.folder = RunDir(Path(tempfile.mkdtemp()))
        self.finished: dict[str, str] = {}

    def teardown(self):
        shutil.rmtree(self.folder.path)

    @rule(name=st.sampled_from("abc"), content=st.text(codec, max_size=5))
    def build(self, name, content):
        self.folder.build(name, lambda out: write_text(out, content))
        self.finished.setdefault(name, content)

    @rule(name=st.sampled_from("abc"), content=st.text(codec, max_size=5))
    def build_a_folder(self, name, content):
        def make(out):
            out.mkdir()
            (out / "inner").mkdir()
            write_text(out / "inner" / "file", content)

        self.folder.build(name, make)
        self.finished.setdefault(name, content)

    @rule(name=st.sampled_from("abc"), content=st.text(codec, max_size=5), kind=st.sampled_from(["file", "folder"]))
    def crash(self, name, content, kind):
        """What a killed process leaves: nothing that it could clean up is cleaned up."""
        if name in self.finished:
            return
        remove(self.folder / f"{name}.partial")
        if kind == "file":
            write_text(self.folder / f"{name}.partial", content)
        else:
            (self.folder / f"{name}.partial").mkdir()
            write_text(self.folder / f"{name}.partial" / "file", content)

    @rule(name=st.sampled_from("abc"), kind=st.sampled_from(["file", "folder"]))
    def fail(self, name, kind):
        def make(out):
            if kind == "folder":
                out.mkdir()
                write_text(out / "file", "half")
            else:
                write_text(out, "half")
            raise OSError(28, "No space left on device")

        if name in self.finished:
            self.folder.build(name, make)  # is not called
        else:
            with pytest.raises(OSError, match="No space"):
                self.folder.build(name, make)

    @invariant()
    def what_is_finished_stays_and_what_is_not_has_no_name(self):
        for name in "abc":
            path = self.folder / name
            if name in self.finished:
                file = path / "inner" / "file" if path.is_dir() else path
                assert file.read_bytes() == self.finished[name].encode()
                assert not path.is_dir() or [p.name for p in path.rglob("*")] == ["inner", "file"]
            else:
                assert not path.exists()
        assert {p.name.removesuffix(".partial") for p in self.folder.path.iterdir()} <= set("abc")


TestRunFolder = RunFolder.TestCase
TestRunFolder.settings = settings(max_examples=100, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize(
    "name",
    [
        "lost+found",
        ".DS_Store",
        "._x",
        ".Trash-1000",
        ".nfs00ab",
        "System Volume Information",
        "lock.held",
        "recipe.json.partial",
    ],
)
def test_what_the_system_puts_into_a_folder_is_no_stranger(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"{")
    for _ in range(2):
        with open_folder(tmp_path / "run", {"a": 1}):
            pass


def test_a_file_in_the_place_of_a_run_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="is a file; name another `out`"), open_folder(tmp_path / "run", {}):
        pass


def test_a_document_beside_a_stage_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    folder = RunDir(tmp_path)
    folder.put_json("x.json", {"a": 1})
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="of the test"):
        folder.put_json("x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
