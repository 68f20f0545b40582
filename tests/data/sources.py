"""Examples of every source that is read, and the table of them: python -m tests.data.sources > docs/sources.md."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow
from pyarrow import parquet

from genius_lite.data.queries import Questions
from genius_lite.recipe import Queries

ASKED = ["What is 2 + 2?", "What is 3, or 4?"]
_SAID = [
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "Hi."), ("assistant", "Hi."), ("user", ASKED[0]))
]


def _lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table(separator: str, encoding: str = "utf-8") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([["prompt", "level"], *([text, "easy"] for text in ASKED)])
    return out.getvalue().encode(encoding)


def _parquet() -> bytes:
    out = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    return out.getvalue().to_pybytes()


def _zst(raw: bytes) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, "zstd") as stream:
        stream.write(raw)
    return out.getvalue().to_pybytes()


ROWS = [{"prompt": text, "level": 1} for text in ASKED]
FILES = {
    "JSON, an object a line": ("q.jsonl", _lines(ROWS)),
    "the same, by another name": ("Q.NDJSON", _lines(ROWS)),
    "JSON, an array": ("q.json", json.dumps(ROWS, indent=1).encode()),
    "JSON, rows in an object": ("q.json", json.dumps({"version": 1, "data": ROWS}).encode()),
    "JSON, by columns (pandas)": (
        "q.json",
        json.dumps({name: {n: row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}).encode(),
    ),
    "CSV": ("q.csv", _table(",")),
    "CSV of Excel in much of Europe": ("q.csv", _table(";", "utf-8-sig")),
    "CSV of one column, without quotes": ("q.csv", "\r\n".join(["prompt", *ASKED]).encode()),
    "TSV, also in UTF-16 with its mark": ("q.tsv", _table("\t", "utf-16")),
    "text, a question a line": ("q.txt", "\n".join(ASKED).encode()),
    "Parquet": ("q.parquet", _parquet()),
    "gzip of any of them": ("q.csv.gz", gzip.compress(_table(","), mtime=0)),
    "Zstandard of any of them": ("q.jsonl.zst", _zst(_lines(ROWS))),
    "no suffix: by what is in it": ("questions", _lines(ROWS)),
}
"""What a file is: its name and bytes. Each holds what is `ASKED`."""

FORMS = {
    "a column": ({"prompt": ASKED[0]}, {}),
    "another column": ({"question": ASKED[0]}, {"column": "question"}),
    "several columns": ({"context": "What is", "question": "2 + 2?"}, {"prompt": "{context} {question}"}),
    "OpenAI's messages": ({"messages": _SAID}, {}),
    "ShareGPT's conversations": ({"conversations": [{"from": "human", "value": ASKED[0]}]}, {}),
    "Alpaca": ({"instruction": "What is", "input": "2 + 2?", "output": "4"}, {}),
    "the same, where the column is named": ({"instruction": "What is", "input": "2 + 2?"}, {"column": "instruction"}),
    "its instruction alone": ({"instruction": "What is it?", "input": ""}, {"prompt": "{instruction}"}),
}  # fmt: skip
"""What a row is: the row, and what a recipe's `queries` says of it."""


def table() -> str:
    """Write both tables, of what was read."""
    lines = [
        "# Sources",
        "",
        "`queries.source` and `evaluate.tasks` read these (made by `tests/data/sources.py`, all of it read by tests).",
        "A folder or a pattern such as `'data/*.jsonl'` is read by name, `'-'` is standard input, and",
        "`hf:OWNER/DATASET` a data set of the hub. A row that cannot be used is set aside, counted and named;",
        "`genius-lite validate --strict` refuses it. Of documents, such as `notes.md`, a model makes questions:",
        "[documents.md](documents.md).",
        "",
        "| file | such as | questions in the example |",
        "| --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for what, (name, content) in FILES.items():
            lines.append(f"| {what} | `{name}` | {len(read(Path(folder) / name, content))} |")
        lines += [
            "",
            "| row | such as | in the recipe | question | messages before it |",
            "| --- | --- | --- | --- | --- |",
        ]
        for what, (row, keys) in FORMS.items():
            (question,) = read(Path(folder) / "q.jsonl", _lines([row]), **keys)
            said = ", ".join(message["role"] for message in question.before)
            asked, written = question.text.replace("\n", "\\n"), ", ".join(f"`{k}: '{v}'`" for k, v in keys.items())
            lines.append(f"| {what} | `{json.dumps(row)}` | {written} | {asked} | {said} |")
    return "\n".join(lines) + "\n"


def read(path: Path, content: bytes, **keys: str) -> list:
    """Write a file and return the questions in it."""
    path.write_bytes(content)
    return [question for _, question in Questions(Queries(source=str(path), **keys))]


if __name__ == "__main__":
    print(table(), end="")
