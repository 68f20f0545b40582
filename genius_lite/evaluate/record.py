"""What a round's `evaluation/` folder holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.evaluate.results import Response, TaskResult, results
from genius_lite.evaluate.signals import Signals
from genius_lite.rundir import read_records, write_json, write_records

ANSWERS = "answers.jsonl"
"""Beside the folder while it is made: the answers so far, a line for each problem."""
_RESPONSES, _SIGNALS = "responses.jsonl", "signals.json"


@dataclass(frozen=True)
class Evaluation:
    """What a policy's answers show. `signals` is None where no query is held out."""

    tasks: list[TaskResult]
    signals: Signals | None


def write_evaluation(folder: Path, responses: list[Response], signals: Signals | None) -> None:
    """Fill a round's folder, which exists."""
    if responses:
        write_records(folder / _RESPONSES, responses)
    if signals:
        write_json(folder / _SIGNALS, signals)


def read_evaluation(run: Path, number: int) -> Evaluation:
    """The evaluation of a run's round, its tasks beside those of the base model, which is round 0."""
    responses, at_base = read_responses(run, number), read_responses(run, 0) if number else []
    file = _folder(run, number) / _SIGNALS
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None  # msgspec reads no infinity
    return Evaluation(results(responses, at_base), msgspec.convert(found, Signals | None))


def read_responses(run: Path, number: int) -> list[Response]:
    """Every response to a task in a run's round; none where it has none."""
    file = _folder(run, number) / _RESPONSES
    return read_records(file, Response) if file.exists() else []


def _folder(run: Path, number: int) -> Path:
    return run / f"round-{number}" / "evaluation"
