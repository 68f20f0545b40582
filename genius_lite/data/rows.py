"""The one reader of questions and of problems: a source becomes rows, one after the other, each with its place.

A row is decoded when it is asked for, and of it only what is asked for; nothing is written, and no type is guessed.
What cannot be read of a row is said of that row alone.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from genius_lite.data.files import (
    FORMATS,
    LONGEST,
    PARQUET,
    SUFFIXES,
    TOO_LONG,
    Fault,
    Numbered,
    about_documents,
    decoded,
    files_of,
    lines_of,
    opened,
    parquet_rows,
    suffix_of,
)
from genius_lite.data.json_rows import json_rows
from genius_lite.data.tables import headers, table_rows, told_apart
from genius_lite.errors import UserError
from genius_lite.recipe import Prefix, Queries, TaskSource
from genius_lite.text import amount, brief, first_line

_MOST_ROWS = 20_000_000
QUESTIONS = ("prompt", "question", "query", "problem", "instruction", "input", "text")
ANSWERS = ("answer", "solution", "target", "label", "output", "response")
"""What columns of questions, and of right answers, are usually called; the likeliest first."""
_HEADS = {*QUESTIONS, *ANSWERS}
_UNREAD = re.compile("[\udc80-\udcff]")  # what `decoded` makes of bytes that are no UTF-8
_EARLY = 1_000  # rows that cannot be used, after which a source is not read to its end if most are such

T = TypeVar("T")


class Columns(NamedTuple):
    """Columns that are read together: those that must be there, and those that may be; `help` where they are not."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    help: str = "say which in queries.column"

    def among(self, names: Sequence[str]) -> list[str]:
        """Return those that are there; none if one is missing that is needed."""
        return [name for name in (*self.needed, *self.optional) if name in names] if {*self.needed} <= {*names} else []


class Row(NamedTuple):
    """A row: where it stands, and its values by column, its text where there are no columns, or what is wrong."""

    place: str
    values: dict[str, Any] | str | Fault


class UsableRows:
    """The rows of a source that can be used; the others are set aside, with what is wrong with the first.

    `used` counts them so far. `kind` is what a row is to be, for messages: a question, a problem.
    """

    def __init__(self, source: str, kind: str):
        self.used, self._source, self._kind = 0, source, kind
        self._aside, self._first, self._blank, self._first_blank = 0, "", 0, ""

    def read(self, rows: Iterable[Row], make: Callable[[dict[str, Any] | str], T]) -> Iterator[tuple[str, T]]:
        """Yield what is made of each row, with its place.

        Args:
            make: raises a UserError where nothing can be made of a row's values.

        Raises:
            UserError: most of the first thousand rows cannot be used.
        """
        for row in rows:
            self.used += 1
            try:
                if isinstance(row.values, Fault):
                    raise UserError(row.values)
                made = make(row.values)
            except UserError as e:
                self.drop(row.place, str(e))
                continue
            yield row.place, made

    def drop(self, place: str, fault: str) -> None:
        """Set one of the rows aside that were used so far; a UserError as of `read`."""
        self.used -= 1
        self._aside += 1
        self._first = self._first or f"{place}: {fault}"
        if self._aside >= _EARLY:
            self.check()

    def drop_blank(self, place: str) -> None:
        """Leave one of them out in which nothing stands; that is no fault of the source."""
        self.used -= 1
        self._blank += 1
        self._first_blank = self._first_blank or place

    def check(self) -> None:
        """Refuse a source of which no more rows can be used than cannot, by a UserError with the first of those."""
        if self._aside >= max(self.used, 1):
            others = [f"and {amount(self._aside - 1, 'other rows')}"] if self._aside > 1 else []
            others += [f"{self.used} can be used, which are too few"] if self.used else []
            raise UserError(f"{self._first} ({'; '.join(others)})" if others else self._first)
        if not self.used:
            raise UserError(f"{self._source}: no {self._kind} in it; one is needed at least")

    def __str__(self) -> str:
        """Say how many are set aside or blank, and what is wrong with the first; empty if there are none.

        It is a `Fault` where some cannot be used, and not of blank ones alone (`validate --strict` asks).
        """
        first = f"the first: {self._first}" if self._aside > 1 else self._first
        aside = f"{_rows_are(self._aside)} set aside; {first}" if self._aside else ""
        blank = f"{_rows_are(self._blank)} blank; the first is {self._first_blank}" if self._blank else ""
        said = "; ".join(filter(None, (aside, blank)))
        return Fault(said) if aside else said


def _rows_are(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def _missing(wanted: Sequence[Columns], names: Sequence[str]) -> str:
    """Say which columns are not among `names`, and what helps."""
    needed = wanted[0].needed if wanted else ()
    lacking = ", ".join(f"`{name}`" for name in needed if name not in names) or "of a name that no other has"
    said = wanted[0].help if wanted else "say which in the recipe"
    return f"no column {lacking}; it has {brief(', '.join(names), 200)}; {not_utf8(names) or said}"


def not_utf8(names: Iterable[str]) -> str:
    """Say so where names of columns hold bytes that `decoded` could not read, which nobody can type; else nothing."""
    return "its header is not UTF-8: save the file as UTF-8" if any(map(_UNREAD.search, names)) else ""


def _fits(wanted: Sequence[Columns], names: Sequence[str]) -> list[str]:
    """Return the columns of these names that are read, if they suffice."""
    if not wanted:
        return [*names]
    return next((found for each in wanted if (found := each.among(names))), [])


def _chosen(place: str, wanted: Sequence[Columns], names: list[str]) -> list[str]:
    """Return the columns of these names that are read; a UserError where they do not suffice."""
    told = told_apart(names)
    columns = [name for name in _fits(wanted, told) if name in names]
    if not columns:
        raise UserError(f"{place}: {_missing(wanted, told)}")
    return columns


def read_rows(
    source: str, wanted: Sequence[Columns], hub: Queries | TaskSource | None = None, *, few: bool = False
) -> Iterator[Row]:
    """Read a source: a file, a folder, a pattern of files, standard input (`-`), or a data set of the hub (`hf:`).

    Args:
        wanted: the columns that are asked for: the first of these that are there are read, and a row without any of
            them has that for its fault; with nothing here, all are read.
        hub: says which part of a hub data set is read; otherwise `train`.
        few: not all are needed, so that of a hub data set only what is read is to be downloaded.

    Raises:
        UserError: there is no such source, or it cannot be read as what it is; or a table lacks the columns.
    """
    rows = (
        _hub_rows(source, wanted, hub or Queries(source=source), few)
        if source.startswith(Prefix.HUB)
        else _local_rows(source, wanted)
    )
    for number, row in enumerate(rows, 1):
        if number > _MOST_ROWS:
            raise UserError(f"{source}: over {_MOST_ROWS // 10**6} million rows; write a limit, or use a part of it")
        if isinstance(row.values, dict) and not _fits(wanted, [*row.values]):
            row = row._replace(values=Fault(_missing(wanted, [*row.values])))
        yield row


def _local_rows(source: str, wanted: Sequence[Columns]) -> Iterator[Row]:
    for path in files_of(source):
        try:
            with opened(path) as stream:
                yield from _file_rows(path, stream, wanted)
        except (OSError, EOFError, UnicodeError, zlib.error) as e:
            raise UserError(f"{path}: cannot be read: {first_line(e)}") from None


def _file_rows(path: Path, stream: io.BufferedReader, wanted: Sequence[Columns]) -> Iterator[Row]:
    def fits(names: Sequence[str]) -> bool:
        return bool(_fits(wanted, names))

    kind = FORMATS.get(suffix_of(path)) or _kind(path, stream)
    rows: Numbered
    if kind == "parquet":
        rows = parquet_rows(stream, path, partial(_chosen, str(path), wanted))
    elif kind == "json":
        # Where nothing is asked for, an object with rows in it is none itself.
        rows = json_rows(decoded(stream), path, fits if wanted else lambda _: False)
    else:
        lines = lines_of(decoded(stream, newline=""), path)
        if kind == "unknown":
            first = next(lines, "")
            # Where nothing is asked for, any line might be a header: one that has such a name is.
            heads = fits if wanted else lambda names: any(name.strip().casefold() in _HEADS for name in names)
            kind, lines = "table" if any(map(heads, headers(first))) else "text", chain([first], lines)
        rows = table_rows(lines, fits) if kind == "table" else _text_rows(lines)
    for number, row in rows:
        yield Row(f"{path}, {number}" if isinstance(number, str) else f"{path}:{number}", row)


def _kind(path: Path, stream: io.BufferedReader) -> str:
    """Tell by its beginning what a file is whose name does not say it."""
    head = stream.peek(4)
    if head.startswith(PARQUET):
        return "parquet"
    if path.suffix:
        raise UserError(f"{path}: a file of questions is one of {SUFFIXES}{about_documents(str(path), [path])}")
    return "json" if head.lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t\0")[:1] in (b"{", b"[") else "unknown"


def _text_rows(lines: Iterator[str]) -> Numbered:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, TOO_LONG if len(line) >= LONGEST else line.rstrip("\r\n")


def _hub_rows(source: str, wanted: Sequence[Columns], hub: Queries | TaskSource, few: bool) -> Iterator[Row]:
    import datasets
    import httpx2
    from datasets import config
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    name = source.removeprefix(Prefix.HUB)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or {".", ".."} & {*name.split("/")}:  # elsewhere it is a path
        raise UserError(f"{source}: a hub dataset is written hf:OWNER/DATASET")
    streaming = few and not config.HF_HUB_OFFLINE  # what was downloaded before is there in whole
    if Path(name).exists():  # which would be read instead
        told = f"{name} is in the working directory too"
        raise UserError(f"{source}: {told}; write ./{name} for that, or run elsewhere for the hub's")
    try:
        rows = datasets.load_dataset(name, hub.subset, split=hub.split, revision=hub.revision, streaming=streaming)
        if names := rows.column_names:
            rows = rows.select_columns(_chosen(source, wanted, names))
        for number, row in enumerate(rows, 1):
            yield Row(f"{source}, row {number}", row)
    except (
        *(DatasetNotFoundError, DatasetGenerationError, HfHubHTTPError, httpx2.HTTPError),
        *(ValueError, TypeError, OSError, RuntimeError),  # the last: a script
        *(ImportError, LookupError, AttributeError),  # a decoder that is not installed, files that are not as they say
    ) as e:
        hint = "; name its subset in the recipe" if "Config name is missing" in str(e) else ""
        raise UserError(f"{source}: the hub dataset cannot be loaded: {first_line(e)}{hint}") from None


def row_object(values: dict[str, Any] | str) -> dict[str, Any]:
    """Return a row's values by column; a UserError where it has none."""
    if isinstance(values, str):
        raise UserError(f"a row of a task is a JSON object, not {brief(values)!r}")
    return values
