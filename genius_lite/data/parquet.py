"""Parquet, of which only the columns are decoded that are asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genius_lite.data.files import Fault, Numbered, seekable
from genius_lite.errors import UserError
from genius_lite.text import first_line

PARQUET = b"PAR1"
"""What a file begins with."""
_BATCH = 64  # rows that are decoded together
# A column's chunk of so many bytes, and so many times what it takes in the file, is a bomb: text packs to a tenth.
_CHUNK, _PACKED = 64_000_000, 200


def parquet_rows(stream: io.BufferedReader, path: Path, chosen: Callable[[list[str]], list[str]]) -> Numbered:
    """Yield each row with its number.

    Args:
        chosen: returns those columns of the file's that are read; raises a UserError where they do not suffice.

    Raises:
        UserError: as `chosen`; or it is no Parquet, or unpacks to more than any questions would.
    """
    import pyarrow
    from pyarrow import parquet, types

    with seekable(stream, path) as file:
        try:
            schema = (opened := parquet.ParquetFile(file)).schema_arrow
            columns = chosen(schema.names)
            _refuse_bomb(path, opened.metadata, columns)
            # What is written once and stands in many rows is decoded once.
            shared = [name for name in columns if types.is_string(schema.field(name).type)]
            opened = parquet.ParquetFile(file, metadata=opened.metadata, read_dictionary=shared)
            number = 0
            for batch in opened.iter_batches(_BATCH, columns=columns, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch, index)
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
    except UnicodeError:
        raise
    except (ValueError, OverflowError, LookupError):  # times that Python has none for; zones that this machine lacks
        return scalar


def _refuse_bomb(path: Path, metadata: Any, columns: Sequence[str]) -> None:
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            size, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
            if chunk.path_in_schema.split(".")[0] in columns and size > max(_CHUNK, _PACKED * packed):
                raise UserError(f"{path}: {packed:,} bytes of it unpack to {size:,}: no file of questions is like that")
