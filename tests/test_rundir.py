from __future__ import annotations

import pytest

from genius_lite.errors import UserError
from genius_lite.records import Query
from genius_lite.rundir import OpenRun, RecordLog, RunDir, read_records, require_space

QUERY = Query("id", "text", [1, 2])


def test_a_stage_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        path = RunDir(tmp_path).build("stage", lambda p: calls.append(p) or p.mkdir() or (p / "f").write_text("x"))
    assert (path / "f").read_text() == "x"
    assert len(calls) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


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


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RecordLog(path, Query)
    log.append(QUERY)
    log.append(QUERY)
    log.close()
    path.write_bytes(path.read_bytes()[:-5])
    again = RecordLog(path, Query)
    assert again.records == [QUERY]
    again.append(QUERY)
    again.close()
    assert read_records(path, Query) == [QUERY, QUERY]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"id": 3}\n')
    with pytest.raises(UserError, match=r"log.jsonl:1: damaged record"):
        RecordLog(path, Query)


def test_a_folder_refuses_another_recipe_and_names_the_difference(tmp_path):
    with OpenRun(tmp_path / "run", {"foresight": {"beams": 2}}):
        pass
    with (
        pytest.raises(UserError, match=r"another recipe \(foresight.beams: 2 there, 3 here\)"),
        OpenRun(tmp_path / "run", {"foresight": {"beams": 3}}),
    ):
        pass


def test_a_folder_in_use_is_refused_and_freed_afterwards(tmp_path):
    with OpenRun(tmp_path / "run", {}), pytest.raises(UserError, match="in use"), OpenRun(tmp_path / "run", {}):
        pass
    with OpenRun(tmp_path / "run", {}):
        pass


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no run folder"), OpenRun(tmp_path, {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_space_is_checked_where_the_folder_will_be(tmp_path):
    require_space(tmp_path / "not" / "there", 1, "it")
    with pytest.raises(UserError, match=r"it needs 1000000\.0 GB"):
        require_space(tmp_path / "not" / "there", 10**15, "it")
