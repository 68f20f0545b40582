"""The files that a source means: decompressed and decoded, a bounded line at a time; Parquet a few rows at a time.

Of Parquet only the columns are decoded that are asked for.
"""

from __future__ import annotations

import glob
import gzip
import io
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from genius_lite.errors import LFS_POINTER, LFS_TOLD, UserError
from genius_lite.recipe import STDIN
from genius_lite.text import amount, first_line

FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "table", ".tsv": "table", ".txt": "text",
    ".parquet": "parquet",
}  # fmt: skip
"""Suffixes of files of questions, and how each is read; `.gz` or `.zst` may follow."""
_COMPRESSED = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how they begin, and no UTF-8 text does
_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
SUFFIXES = f"{' '.join(FORMATS)}, or one of them with {' or '.join(_COMPRESSED)} after it"
KINDS = {
    ".md": "Markdown", ".markdown": "Markdown", ".html": "HTML", ".htm": "HTML", ".xhtml": "HTML", ".txt": "text",
    ".pdf": "PDF",
}  # fmt: skip
"""Suffixes of documents, which questions can be asked about, and what each is."""

LONGEST = 8_000_000
"""Characters of a row, all its columns together."""
_MOST = 20_000_000_000  # characters of a file, unpacked: some minutes

PARQUET = b"PAR1"
"""What such a file begins with."""
_BATCH = 64  # rows of it that are decoded together
# A column's chunk of so many bytes, and so many times what it takes in the file, is a bomb: text packs to a tenth.
_CHUNK, _PACKED = 64_000_000, 200

Fits = Callable[[Sequence[str]], bool]
"""Whether the columns of these names suffice."""


class Fault(str):
    """What is wrong with a row, or with rows."""


Numbered = Iterator[tuple[int | str, dict[str, Any] | str | Fault]]
"""Rows, each with the line on which it begins, or "row 3" where that is not known: by column, a text, or a fault."""
TOO_LONG = Fault(f"a row of more than {LONGEST:,} characters")


def suffix_of(path: Path) -> str:
    """Return how a file's name ends, in small letters and without what says that it is compressed."""
    ends = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED]
    return ends[-1] if ends else ""


def stem_of(source: str) -> str:
    """Return a source's name without folders and the suffixes of a file of questions; of `a/*.jsonl` the folder's."""
    path = Path(source)
    while path.suffix.lower() in (*FORMATS, *_COMPRESSED):
        path = path.with_suffix("")
    return path.name if any(map(str.isalnum, path.name)) else path.parent.name or path.name


def files_of(source: str) -> list[Path]:
    """List the files of a path, a folder (with those below it) or a pattern, by name.

    Raises:
        UserError: there is none, or they are of several kinds.
    """
    path = Path(source)
    if source == STDIN:
        return [path]
    if path.is_dir():
        there = [f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        found = [file for file in there if suffix_of(file) in FORMATS]
        if not found:
            told = f"{source}: no file of questions in this folder; one ends in {SUFFIXES}"
            raise UserError(told + about_documents(source, there))
    elif path.exists():
        return [path]
    else:
        # Folders that are there are meant as they are called: one may well be named `[old] questions`.
        there = next((above for above in path.parents if above.is_dir()), path.parent)  # of a drive that is gone, none
        pattern = str(Path(glob.escape(str(there)), path.relative_to(there)))
        found = [*map(Path, glob.glob(pattern, recursive=True))] if glob.has_magic(source) else []  # noqa: PTH207
    found = sorted(file for file in found if file.is_file())
    found = [file for file in found if file.stat().st_size] or found  # a part that is empty, as Spark writes them
    if not found:
        raise UserError(f"{source}: no such file")
    kinds = {FORMATS.get(suffix_of(file), suffix_of(file)): file for file in found}
    if len(kinds) > 1:
        kinds_found = " and ".join(file.name for file in kinds.values())
        raise UserError(f"{source}: files of several kinds, such as {kinds_found}; write a pattern, such as *.jsonl")
    return found


def about_documents(source: str, files: Sequence[Path]) -> str:
    """Say how to come from a source to questions, for the end of a message; empty if no file of it is a document."""
    if not any(file.suffix.lower() in KINDS for file in files):
        return ""
    return f"; a model asks about documents: genius-lite questions {shlex.quote(source)} --model MODEL --out OUT.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file, or standard input; what is compressed comes out unpacked, whatever its name is.

    Raises:
        UserError: it is empty, a pointer of Git LFS, or standard input that was read before.
    """
    if str(path) == STDIN and sys.stdin.closed:
        raise UserError(f"{path}: standard input was read before; write it to a file")
    with cast("io.BufferedReader", sys.stdin.buffer) if str(path) == STDIN else path.open("rb") as raw:
        begin = raw.peek(len(LFS_POINTER))
        if not begin:
            raise UserError(f"{path}: the file is empty")
        if begin.startswith(LFS_POINTER):
            raise UserError(f"{path}: {LFS_TOLD}")
        if begin.startswith(_GZIP):
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
        elif begin.startswith(_ZSTD):
            import pyarrow

            if not pyarrow.Codec.is_available("zstd"):
                raise UserError(f"{path}: pyarrow was built without Zstandard here; unpack it with `zstd -d {path}`")
            yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
        else:
            yield raw


def decoded(stream: io.BufferedReader, *, newline: str | None = None) -> TextIO:
    """Decode a file as its byte order mark says, else as UTF-8; bytes that are none become half characters.

    Those stand in the way of nothing but a column that is asked for (`questions.checked`).
    """
    head = stream.peek(4)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding:
        return io.TextIOWrapper(stream, encoding, newline=newline)
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


def lines_of(text: TextIO, name: Path) -> Iterator[str]:
    """Yield the lines, of one too long its first `LONGEST` characters; a UserError where the file is too large."""
    length, begins = 0, True
    while part := text.readline(LONGEST):
        if begins:
            yield part.removeprefix("\ufeff")  # of a file that another one was put before
        begins = len(part) < LONGEST or part[-1] in "\r\n"
        length += len(part)
        if length > _MOST:
            raise UserError(f"{name}: over {_MOST // 10**9} GB; write queries.limit, or use a part of it")


def parquet_rows(stream: io.BufferedReader, path: Path, chosen: Callable[[list[str]], list[str]]) -> Numbered:
    """Yield each row with its number.

    Args:
        chosen: returns those columns of the file's that are read; raises a UserError where they do not suffice.

    Raises:
        UserError: as `chosen`; or it is no Parquet, or unpacks to more than any questions would.
    """
    import pyarrow
    from pyarrow import parquet

    with _seekable(stream, path) as file:
        try:
            schema = (opened := parquet.ParquetFile(file)).schema_arrow
            columns = chosen(schema.names)
            shared = _refuse_bomb(path, opened.metadata, columns)
            opened = parquet.ParquetFile(file, metadata=opened.metadata, read_dictionary=shared)
            number = 0
            for group in range(opened.num_row_groups):  # of several at once no nested column is read
                for batch in opened.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False):
                    _refuse_repeated(path, batch)
                    for index in range(batch.num_rows):
                        number += 1
                        yield f"row {number}", _row(batch, index)
        except pyarrow.ArrowException as e:
            raise UserError(f"{path}: cannot be read as Parquet: {first_line(e)}") from None


def _row(batch: Any, index: int) -> dict[str, Any] | Fault:
    try:
        return {name: _value(batch.column(name)[index]) for name in batch.schema.names}
    except UnicodeError as e:
        return Fault(f"not UTF-8: {first_line(e)}")


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeError:  # a ValueError, too
        raise
    except (ValueError, OverflowError, LookupError):  # times that Python has none for; zones that this machine lacks
        return scalar


def _refuse_bomb(path: Path, metadata: Any, columns: Sequence[str]) -> list[str]:
    """Look at the parts of these columns; return the paths of those that hold text or bytes."""
    schema, names = metadata.schema, [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    asked = [at for at, name in enumerate(names) if any(name == col or name.startswith(f"{col}.") for col in columns)]
    for group, number in product(range(metadata.num_row_groups), asked):
        chunk = metadata.row_group(group).column(number)
        size, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        if size > max(_CHUNK, _PACKED * packed):
            raise UserError(f"{path}: {packed:,} bytes of it unpack to {size:,}: no file of questions is like that")
    # What is written once and stands in many rows is decoded once.
    decimals = {at for at in asked if schema.column(at).logical_type.type == "DECIMAL"}
    return [names[at] for at in asked if schema.column(at).physical_type == "BYTE_ARRAY" and at not in decimals]


def _refuse_repeated(path: Path, batch: Any) -> None:
    """Refuse rows in which texts, written once each, stand so often within lists that no memory holds a row."""
    from pyarrow import types

    size = sum(_repeated(column) for column in batch.columns if types.is_nested(column.type))
    if size > _BATCH * LONGEST:
        rows = amount(batch.num_rows, "rows")
        raise UserError(f"{path}: {size:,} bytes come out of {rows} of it: no file of questions is like that")


def _repeated(column: Any) -> int:
    """Count the bytes that come out of the dictionaries of a column."""
    from pyarrow import compute, types

    functions: Any = compute  # which pyarrow makes when it is imported
    if types.is_dictionary(column.type):
        lengths = functions.binary_length(column.dictionary)
        return functions.sum(lengths.take(column.indices)).as_py() or 0
    if types.is_map(column.type):
        return _repeated(column.keys) + _repeated(column.items)
    parts = column.flatten() if types.is_nested(column.type) else []
    return sum(map(_repeated, parts if isinstance(parts, list) else [parts]))


@contextmanager
def _seekable(stream: io.BufferedReader, path: Path) -> Iterator[BinaryIO]:
    """Return a stream in which one can go back, if need be by a temporary copy."""
    if stream.seekable() and not isinstance(stream.raw, gzip.GzipFile):
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        while chunk := stream.read(1 << 20):
            if copy.tell() > _MOST // 10:
                raise UserError(f"{path}: unpacks to over {_MOST // 10**10} GB; unpack it, and use a part of it")
            copy.write(chunk)
        copy.seek(0)
        yield copy
