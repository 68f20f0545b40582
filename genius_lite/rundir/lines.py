"""JSON lines on disk, decoded when they are asked for: a long log opens at once, and takes no memory."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import msgspec

from genius_lite.errors import UserError
from genius_lite.records import prepared
from genius_lite.rundir.disk import sync, sync_descriptor
from genius_lite.rundir.folder import PAIRS, RESPONSES

T = TypeVar("T")
_BLOCK = 1 << 18  # bytes read at once while line ends are looked for
_BEGINNING = 64  # bytes of a line that hold the id of a query
_AT_ONCE = 32  # records for which the disk is waited for once
_WHOLE = (PAIRS, RESPONSES)  # a line of which is not made by itself
_ID = re.compile(rb'\{"query(?:_id":|":\{"id":)"([0-9a-f]+)"')


class Lines(Sequence[T], Generic[T]):
    """The records of a file, each read from it whenever it is asked for; a part of them is such a sequence too.

    The file may be missing, or growing: a last line that is not whole yet is left out.

    Args:
        bounds: where each line begins, and where the last one ends, which may grow; those of now if not given.
        places: which lines, by number from 0; all if not given.

    Reading raises UserError where a line is damaged; it is named.
    """

    def __init__(
        self, path: Path, kind: type[T], bounds: array[int] | None = None, places: Sequence[int] | None = None
    ):
        self.path, self.kind = path, kind
        self._bounds, self._chosen = line_bounds(path) if bounds is None else bounds, places
        self._decode = _decoder(kind)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        if not self:
            return
        with self.path.open("rb") as file:
            for place in self._places:
                yield self._read(file, place)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lines[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lines[T]:
        if isinstance(index, slice):
            return Lines(self.path, self.kind, self._bounds, self._places[index])
        with self.path.open("rb") as file:
            return self._read(file, self._places[index])

    def pick(self, indices: Iterable[int]) -> Lines[T]:
        """Choose some of the records, in this order."""
        places = self._places
        return Lines(self.path, self.kind, self._bounds, [places[i] for i in indices])

    @property
    def whole(self) -> bool:
        """Whether these are all records of the file."""
        return self._chosen is None

    def query_ids(self) -> list[str]:
        """List the query of each record, which begins with it or with its id; the rest of the line is not read."""
        if not self:
            return []
        ids = []
        with self.path.open("rb", buffering=0) as file:
            for n, place in enumerate(self._places):
                file.seek(self._bounds[place])
                found = _ID.match(file.read(_BEGINNING))
                ids.append(found[1].decode() if found else _query_id(self[n]))
        return ids

    @property
    def _places(self) -> Sequence[int]:
        return range(len(self._bounds) - 1) if self._chosen is None else self._chosen

    def _read(self, file: BinaryIO, place: int) -> T:
        start, end = self._bounds[place : place + 2]
        if file.tell() != start:
            file.seek(start)
        return _decoded(self._decode, file.read(end - start), self.path, place + 1)


class RecordLog(Generic[T]):
    """An append-only file of records, each on disk before `append` returns.

    A last line that a crash cut short is dropped when the log is opened. `records` are read from the file when they are
    asked for; a line before the last that is damaged is named then, as a UserError.
    """

    def __init__(self, path: Path, kind: type[T]):
        self.path = path
        self._bounds = line_bounds(path)
        self.records = Lines(path, kind, self._bounds)
        begun = path.exists()
        self._file = path.open("ab", buffering=0)
        if not begun:
            sync(path.parent)
        self._drop_torn()

    def append(self, *records: T) -> None:
        """Write records and wait until the disk has them; if it does not take all of them whole, none is kept."""
        lines = [msgspec.json.encode(record) + b"\n" for record in records]
        rest = memoryview(b"".join(lines))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            sync_descriptor(self._file.fileno())
        except BaseException:
            self._drop_torn()
            raise
        for line in lines:
            self._bounds.append(self._bounds[-1] + len(line))

    def extend(self, records: Lines[T], over: set[str]) -> int:
        """Append the records whose queries are not `over` yet, which they are then; return how many these are."""
        new = list[int]()
        for number, query in enumerate(records.query_ids()):
            if query not in over:
                over.add(query)
                new.append(number)
        for start in range(0, len(new), _AT_ONCE):
            self.append(*records.pick(new[start : start + _AT_ONCE]))
        return len(new)

    def close(self) -> None:
        self._file.close()

    def _drop_torn(self) -> None:
        if self.path.stat().st_size > self._bounds[-1]:
            os.truncate(self.path, self._bounds[-1])


def line_bounds(path: Path) -> array[int]:
    """Find where each line of a file begins, and where the last one ends; what follows the last line end is no line."""
    bounds, before = array("q", [0]), 0
    if not path.exists():
        return bounds
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file of records belongs; put the file back, or delete the folder")
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            at = 0
            while (at := block.find(b"\n", at) + 1) > 0:
                bounds.append(before + at)
            before += len(block)
    return bounds


def read_records(path: Path, kind: type[T]) -> list[T]:
    """Read all records of a JSON-lines file that genius-lite wrote; a UserError names a line that is damaged."""
    decode = _decoder(kind)
    with path.open("rb") as file:
        return [_decoded(decode, line, path, number) for number, line in enumerate(file, 1)]


def sound_records(path: Path, kind: type[T]) -> list[T]:
    """Read the records of a file of which nothing but figures for people depends: damaged lines are passed over."""
    found, decode = list[T](), _decoder(kind)
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    found.append(decode(line))
    return found


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write a JSON line for each record; of an iterator no more than one is in memory."""
    with path.open("wb") as file:
        file.writelines(msgspec.json.encode(record) + b"\n" for record in records)


@cache
def _decoder(kind: type) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(prepared(kind)).decode


def _decoded(decode: Any, line: bytes, path: Path, number: int) -> Any:
    try:
        return decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        mend = "delete the file to have it made anew" if path.name in _WHOLE else "delete the line to sample it again"
        raise UserError(f"{path}:{number}: damaged record ({e}); {mend}") from None


def _query_id(record: Any) -> str:
    """Find the query of a line that someone else has written anew, with spaces or other fields first."""
    return record.query.id if hasattr(record, "query") else record.query_id
