"""Where the questions come from: a local file or a hub dataset, one column of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genius_lite.errors import UserError
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import Queries
from genius_lite.records import Query, query_id

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def select(cfg: Queries, vocabulary: Vocabulary) -> tuple[list[Query], int]:
    """The recipe's queries in order, and how many repeats were dropped.

    Blank questions are dropped too; shuffling comes before `limit`.

    Raises:
        UserError: the source cannot be read, lacks the column, or holds no question.
    """
    texts = [text.strip() for text in read(cfg) if text.strip()]
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise UserError(f"{cfg.source}: no question in it; one is needed at least")
    if cfg.shuffle:
        np.random.default_rng(cfg.seed).shuffle(distinct)
    chosen = distinct[: cfg.limit]
    queries = [Query(query_id(text), text, vocabulary.prompt(text, cfg.system)) for text in chosen]
    return queries, len(texts) - len(distinct)


def read(cfg: Queries) -> list[str]:
    """Every question of the source, in its order.

    Raises:
        UserError: as `select`.
    """
    if cfg.source.startswith("hf:"):
        return _from_hub(cfg)
    path = Path(cfg.source)
    if not path.is_file():
        raise UserError(f"{path}: no such query file")
    if path.suffix not in _FORMATS:
        raise UserError(f"{path}: a query file is one of {' '.join(_FORMATS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the query file is empty")
    return _from_file(path, cfg.column)


def _from_file(path: Path, column: str) -> list[str]:
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    kind = _FORMATS[path.suffix]
    # Streaming reads the file in place; the other way copies it into a cache first.
    try:
        rows = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
        return _column(rows, "text" if kind == "text" else column, str(path))
    except (
        DatasetGenerationError,
        pyarrow.ArrowException,
        ValueError,
        UnicodeError,
    ) as e:
        raise UserError(f"{path}: cannot be read as {kind}: {_first_line(e)}") from None


def _from_hub(cfg: Queries) -> list[str]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    name = cfg.source.removeprefix("hf:")
    try:
        rows = datasets.load_dataset(name, split=cfg.split, revision=cfg.revision)
    except (DatasetNotFoundError, HfHubHTTPError, ValueError, OSError) as e:
        raise UserError(f"{cfg.source}: the hub dataset cannot be loaded: {_first_line(e)}") from None
    return _column(rows, cfg.column, cfg.source)


def _column(rows: Any, column: str, source: str) -> list[str]:
    texts = []
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise UserError(f"{source}: no column `{column}`; it has {', '.join(row)}; set queries.column")
        if not isinstance(row[column], str):
            raise UserError(f"{source}, row {number}: `{column}` is {row[column]!r}, not text")
        texts.append(row[column])
    return texts


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
