from __future__ import annotations

import os
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genius_lite.errors import UserError
from genius_lite.records import FailedQuery, Query, Rollout, query_id
from genius_lite.rundir import lines
from genius_lite.rundir.lines import Lines, RecordLog, line_bounds, read_records, write_records

texts = st.text(st.characters(codec="utf-8"), max_size=12)
queries = st.builds(Query, texts.map(query_id), texts, st.lists(st.integers(0, 9), max_size=3))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=8)), st.binary(max_size=8), st.integers(1, 20))
def test_bounds_are_the_line_ends_whatever_is_read_at_once(tmp_path_factory, pieces, rest, block):
    path = tmp_path_factory.getbasetemp() / "bounds"
    content = b"".join(piece.replace(b"\n", b"") + b"\n" for piece in pieces) + rest.replace(b"\n", b"")
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", block)
        bounds = line_bounds(path)
    assert [content[a:b] for a, b in pairwise(bounds)] == [part + b"\n" for part in content.split(b"\n")[:-1]]


@settings(max_examples=200, deadline=None)
@given(st.lists(queries, max_size=8), st.data())
def test_they_are_a_sequence_like_a_list(tmp_path_factory, records, data):
    path = tmp_path_factory.getbasetemp() / "sequence.jsonl"
    write_records(path, records)
    found = Lines(path, Query, line_bounds(path))
    assert (len(found), list(found), read_records(path, Query)) == (len(records), records, records)
    part = data.draw(st.slices(len(records))) if records else slice(None)
    assert list(found[part]) == records[part]
    assert list(found[part][::-1]) == records[part][::-1]
    order = data.draw(st.lists(st.integers(0, len(records) - 1))) if records else []
    assert list(found.pick(order)) == [records[i] for i in order]
    assert [found[i] for i in order] == [records[i] for i in order]
    assert list(zip(found, found, strict=True)) == list(zip(records, records, strict=True))
    with pytest.raises(IndexError):
        found[len(records)]


def test_the_ids_of_queries_are_read_without_the_rest(tmp_path):
    path = tmp_path / "r.jsonl"
    ids = [query_id(str(n)) for n in range(4)]
    whole = msgspec.json.encode(Rollout(Query(ids[1], "x", [1]), []))
    path.write_bytes(
        b'{"query":{"id":"%s" nothing else\n' % ids[0].encode()
        + whole
        + b"\n"
        + msgspec.json.encode(FailedQuery(ids[2], "why"))
        + b"\n"
        + b'{ "steps": [],  "query": {"tokens": [], "prompt": "", "id": "%s"}}\n' % ids[3].encode()
    )
    found = Lines(path, Rollout, line_bounds(path))
    assert found.query_ids() == ids
    assert found[1:2].query_ids() == [ids[1]]
    assert found[0:0].query_ids() == []
    with pytest.raises(UserError, match=r"r.jsonl:1: damaged record .*; delete the line to sample it again"):
        list(found)
    assert found[1] == msgspec.json.decode(whole, type=Rollout)


def test_a_log_that_grows_is_read_as_it_is_then(tmp_path):
    log = RecordLog(tmp_path / "log", Query)
    assert (len(log.records), list(log.records), log.records.query_ids()) == (0, [], [])
    rows = [Query(query_id(str(n)), str(n), [n]) for n in range(3)]
    for row in rows[:2]:
        log.append(row)
    earlier = log.records[:]
    log.append(rows[2])
    log.close()
    assert (list(log.records), list(earlier), log.records[-1]) == (rows, rows[:2], rows[2])


class _FullDisk:
    """A file that takes `room` bytes more."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, content) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self.file.write(bytes(content[: self.room]))
        self.room -= written
        return written

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 10])
def test_a_record_that_the_disk_does_not_take_whole_is_taken_back(tmp_path, room):
    first, second = Query("a", "x", [1]), Query("b", "y", [2])
    log = RecordLog(tmp_path / "log", Query)
    log.append(first)
    file, log._file = log._file, _FullDisk(log._file, room)
    with pytest.raises(OSError, match="No space left"):
        log.append(second)
    log._file = file
    log.append(second)  # there is room again
    log.close()
    assert read_records(tmp_path / "log", Query) == list(log.records) == [first, second]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "reopen", "tear", "cut"]), st.integers(0, 60), queries),
        max_size=20,
    )
)
def test_a_log_keeps_what_was_appended_and_drops_a_torn_last_line(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "torn.jsonl"
    path.unlink(missing_ok=True)
    log, model = RecordLog(path, Query), []
    for action, n, record in steps:
        if action == "append":
            log.append(record)
            model.append(record)
        elif action == "reopen":  # as after a crash: nobody has closed it
            log = RecordLog(path, Query)
        elif action == "tear":  # a crash while a record was written
            with path.open("ab") as file:
                file.write((msgspec.json.encode(record) + b"\n")[: min(n, len(msgspec.json.encode(record)))])
            log = RecordLog(path, Query)
        else:  # the disk lost the end of the file
            left = max(0, path.stat().st_size - n)
            os.truncate(path, left)
            model = model[: path.read_bytes().count(b"\n")]
            log = RecordLog(path, Query)
        assert list(log.records) == model
        assert path.read_bytes() == b"".join(msgspec.json.encode(r) + b"\n" for r in model)
    log.close()


def test_lines_that_only_tell_of_time_are_passed_over_where_they_are_damaged(tmp_path):
    path = tmp_path / "timings.jsonl"
    assert lines.sound_records(path, FailedQuery) == []
    whole = FailedQuery("a", "b")
    torn = [
        b'{"query_id": "a", "rea',
        b'{"query_id": "a"{"query_id": "a", "reason": "b"}\n',
        b"\xff\n",
        b"\0\0\0\n",
        b"\n",
    ]
    good = msgspec.json.encode(whole) + b"\n"
    path.write_bytes(b"".join(part + good if part.endswith(b"\n") else good for part in torn) + torn[0])
    assert lines.sound_records(path, FailedQuery) == [whole] * len(torn)


def test_several_records_are_all_kept_or_none_and_the_disk_is_waited_for_once(tmp_path, monkeypatch):
    records, waited = [Query(query_id(str(n)), str(n), [n]) for n in range(5)], []
    monkeypatch.setattr(lines, "sync_descriptor", waited.append)
    log = RecordLog(tmp_path / "r.jsonl", Query)
    log.append(*records[:3])
    assert (len(waited), list(log.records)) == (1, records[:3])

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lines, "sync_descriptor", full)
    with pytest.raises(OSError, match="No space"):
        log.append(*records[3:])
    assert read_records(tmp_path / "r.jsonl", Query) == [*log.records] == records[:3]


def test_a_log_is_extended_by_the_records_whose_queries_are_not_over(tmp_path):
    theirs, over = [FailedQuery(query_id(str(n)), "why") for n in range(70)], {query_id("1")}
    write_records(tmp_path / "theirs.jsonl", [*theirs, theirs[3]])
    log = RecordLog(tmp_path / "own.jsonl", FailedQuery)
    assert log.extend(Lines(tmp_path / "theirs.jsonl", FailedQuery), over) == 69
    assert [*log.records] == [theirs[0], *theirs[2:]]
    assert over == {one.query_id for one in theirs}
