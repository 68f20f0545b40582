"""Where the questions come from: a local file or a hub dataset, one column of it."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genius_lite.data.vocabulary import Vocabulary, check_text
from genius_lite.errors import UserError
from genius_lite.recipe import Prefix, Queries
from genius_lite.records import Query, held_count, query_id, seed_of
from genius_lite.text import brief

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""Suffixes of query files, and what Hugging Face datasets calls each."""

_BYTE_ORDER_MARK = "\ufeff"


class Selected(NamedTuple):
    """Hold the recipe's queries in order; questions beyond its limit; and how many repeats were dropped."""

    queries: list[Query]
    beyond: list[Query]
    duplicates: int


def select(cfg: Queries, vocabulary: Vocabulary, beyond: int = 0) -> Selected:
    """Select the recipe's queries, and up to `beyond` further questions of the source, which nothing is learned from.

    Blank questions are dropped; shuffling comes before `limit`.

    Raises:
        UserError: the source cannot be read, lacks the column, or holds no question.
    """
    texts = [text.strip() for text in read(cfg) if text.strip()]
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise UserError(f"{cfg.source}: no question in it; one is needed at least")
    if cfg.shuffle:
        np.random.default_rng(cfg.seed).shuffle(distinct)
    limit = len(distinct) if cfg.limit is None else cfg.limit
    wanted = distinct[: limit + beyond]
    queries = [Query(query_id(text), text, vocabulary.prompt(text, cfg.system)) for text in wanted]
    return Selected(queries[:limit], queries[limit:], len(texts) - len(distinct))


def hold_out(ids: list[str], share: float, seed: int, most: int) -> frozenset[str]:
    """Choose about `share` of the queries, the same in every round: they are watched, and nothing learns from them.

    One at least where there are ten, and never all of them, nor more than `most`, which are all that is watched.
    """
    count = held_count(len(ids), share, most)
    return frozenset(sorted(ids, key=lambda query: seed_of(seed, "holdout", query))[:count])


def read(cfg: Queries) -> list[str]:
    """Return every question of the source, in its order.

    Raises:
        UserError: as `select`.
    """
    if cfg.source.startswith(Prefix.HUB):
        return _from_hub(cfg)
    path = Path(cfg.source)
    with _rows(path) as rows:
        texts = _column(rows, "text" if path.suffix == ".txt" else cfg.column, str(path))
    return [text.removeprefix(_BYTE_ORDER_MARK) if number == 0 else text for number, text in enumerate(texts)]


def text_columns(path: Path) -> dict[str, str]:
    """Return the columns of a file that hold text, each with the first row's.

    Raises:
        UserError: it cannot be read, or has no row.
    """
    with _rows(path) as rows:
        first = next(iter(rows), None)
    if first is None:
        raise UserError(f"{path}: no question in it; one is needed at least")
    return {name: value for name, value in first.items() if isinstance(value, str)}


@contextmanager
def _rows(path: Path) -> Iterator[Any]:
    """Open a file as its rows."""
    if not path.is_file():
        raise UserError(f"{path}: no such query file")
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: a query file is one of {' '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the query file is empty")
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    kind = FORMATS[path.suffix]
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}  # the question "None" is a text
    logging.getLogger("datasets").setLevel(logging.CRITICAL + 1)  # it says on its own what it raises
    # Streaming reads the file in place; the other way copies it into a cache first.
    try:
        files = glob.escape(str(path))  # it would be a pattern
        yield datasets.load_dataset(kind, data_files=files, split="train", streaming=True, **options)
    except (DatasetGenerationError, pyarrow.ArrowException, ValueError) as e:  # UnicodeError is a ValueError
        raise UserError(f"{path}: cannot be read as {kind}: {_first_line(e)}") from None


def _from_hub(cfg: Queries) -> list[str]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    name = cfg.source.removeprefix(Prefix.HUB)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or {".", ".."} & {*name.split("/")}:  # elsewhere it is a path
        raise UserError(f"{cfg.source}: a hub dataset is written hf:OWNER/DATASET")
    try:
        rows = datasets.load_dataset(name, cfg.subset, split=cfg.split, revision=cfg.revision)
    except (DatasetNotFoundError, HfHubHTTPError, ValueError, OSError, RuntimeError) as e:  # the last: a script
        hint = "; set queries.subset" if "Config name is missing" in str(e) else ""
        raise UserError(f"{cfg.source}: the hub dataset cannot be loaded: {_first_line(e)}{hint}") from None
    return _column(rows, cfg.column, cfg.source)


def _column(rows: Any, column: str, source: str) -> list[str]:
    texts = []
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise UserError(f"{source}: no column `{column}`; it has {brief(', '.join(row), 200)}; set queries.column")
        if not isinstance(row[column], str):
            raise UserError(f"{source}, row {number}: `{column}` is {brief(repr(row[column]))}, not text")
        try:
            check_text(row[column])
        except UserError as e:
            raise UserError(f"{source}, row {number}: {e}") from None
        texts.append(row[column])
    return texts


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return brief((str(cause).strip() or type(cause).__name__).splitlines()[0], 200)
