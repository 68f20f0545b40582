"""The questions to learn from and the problems to measure on: what is there, and which columns are meant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.data.queries import FORMATS, read, text_columns
from genius_lite.errors import UserError
from genius_lite.evaluate.asking import load_task
from genius_lite.evaluate.tasks import REASONING_GYM
from genius_lite.recipe import Check, Queries, TaskSource

_QUESTIONS = ("prompt", "question", "query", "problem", "instruction", "input", "text")  # usual names of columns
_ANSWERS = ("answer", "solution", "target", "label", "output", "response")
_NUMBER = re.compile(r"[\s$]*-?[\d.,]+\s*%?\s*|.*####.*", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """Questions of a file: the distinct ones, in its order. Those of the hub are not looked at, and None."""

    source: str
    column: str
    texts: list[str] | None

    @property
    def told(self) -> str:
        """What was found."""
        if self.texts is None:
            return "downloaded when they are first used"
        first = " ".join(self.texts[0].split())
        return f'{len(self.texts)} questions in `{self.column}`, such as "{first[:50]}{"..." * (len(first) > 50)}"'


def files_here() -> list[str]:
    """Files of the working directory that may hold questions, the likeliest first."""
    found = [p for p in Path().iterdir() if p.suffix in FORMATS and p.is_file() and not p.name.startswith(".")]
    likely = re.compile("quer|quest|prompt", re.IGNORECASE)
    found = [p for p in found if p.suffix in (".jsonl", ".csv", ".parquet") or likely.search(p.name)]
    return [str(p) for p in sorted(found, key=lambda p: (not likely.search(p.name), p.name))]


def columns(source: str) -> list[str]:
    """The columns that may hold the questions, the likeliest first.

    Raises:
        UserError: there is no such file, or no text in it.
    """
    if source.startswith("hf:"):
        if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+", source):
            raise UserError(f"{source}: a hub dataset is written hf:OWNER/DATASET")
        return ["prompt"]
    found = text_columns(Path(source).expanduser())
    if not found:
        raise UserError(f"{source}: no column of text in its first row")
    return sorted(found, key=lambda name: _QUESTIONS.index(name) if name in _QUESTIONS else len(_QUESTIONS))


def look_at(source: str, column: str) -> Asked:
    """Read the questions.

    Raises:
        UserError: there is no such column, or a row has no text in it.
    """
    if source.startswith("hf:"):
        return Asked(source, column, None)
    path = str(Path(source).expanduser())
    texts = list(dict.fromkeys(text.strip() for text in read(Queries(source=path, column=column)) if text.strip()))
    if not texts:
        raise UserError(f"{source}: no question in it; one is needed at least")
    return Asked(path, column, texts)


def problems(source: str) -> tuple[TaskSource, str, list[str]]:
    """A task from a source: its columns and its checker are guessed, and then tried on every problem.

    Returns:
        The task, what was found, and its prompts.

    Raises:
        UserError: it cannot be read, or has no question or no answer.
    """
    if source.startswith(REASONING_GYM):
        task = TaskSource(source=source)
        return task, f"{task.size} problems are generated", [p.prompt for p in load_task(task).problems]
    path = Path(source).expanduser()
    rows = _rows(path)
    prompt, answer = (_column(path, rows[0], names) for names in (_QUESTIONS, _ANSWERS))
    kind = _check(rows, answer)
    task = TaskSource(source=str(path), check=kind, prompt=prompt, answer=answer)
    loaded = load_task(task)
    told = f"{len(loaded.problems)} problems, `{prompt}` and `{answer}`; answers are compared as {kind}"
    return task, told, [problem.prompt for problem in loaded.problems]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such task file")
    if path.suffix != ".jsonl":
        raise UserError(f'{path}: problems are read from a .jsonl, a row such as {{"prompt": ..., "answer": ...}}')
    try:
        rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{path}: not JSON lines: {e}") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path}: no problem in it; a row is such as {{"prompt": ..., "answer": ...}}')
    return rows


def _column(path: Path, row: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            return name
    raise UserError(f"{path}: no column `{names[0]}`; it has {', '.join(row)}; rename one, or add the task by hand")


def _check(rows: list[dict[str, Any]], answer: str) -> Check:
    if all("choices" in row for row in rows):
        return "choice"
    return "numeric" if all(_NUMBER.fullmatch(str(row.get(answer, ""))) for row in rows) else "exact"
