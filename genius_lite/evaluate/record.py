"""What a round's `evaluation/` folder holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.evaluate.results import Response, TaskResult, results
from genius_lite.evaluate.signals import Signals
from genius_lite.rundir import ROUNDED, read_records, write_json, write_records

ANSWERS = "answers.jsonl"
"""Beside the folder while it is made: the answers so far, a line for each problem."""
RESPONSES, _SIGNALS = "responses.jsonl", "signals.json"


@dataclass(frozen=True)
class Evaluation:
    """What a policy's answers show. `signals` is None where no query is held out."""

    tasks: list[TaskResult]
    signals: Signals | None


def write_evaluation(folder: Path, responses: list[Response], signals: Signals | None) -> None:
    """Fill a round's folder, which exists."""
    if responses:
        write_records(folder / RESPONSES, responses)
    if signals:
        write_json(folder / _SIGNALS, signals)


def read_evaluation(run: Path, number: int) -> Evaluation:
    """The evaluation of a run's round, its tasks beside those of the base model, which is round 0.

    The base model is the one that went through the rounding of the rounds; the user's own file where that is the same.
    """
    folder = folder_of(run, number)
    return _read(folder, _responses(folder_of(run, 0)) if number else [])


def read_own(folder: Path) -> Evaluation:
    """The evaluation in a folder, which has one, beside nothing."""
    return _read(folder, [])


def read_responses(run: Path, number: int) -> list[Response]:
    """Every response to a task in a run's round; none where it has none."""
    return _responses(folder_of(run, number))


def folder_of(run: Path, number: int) -> Path:
    """Where the `evaluation` of a round lies, or would lie; of round 0 that which rounds are told against."""
    rounded = run / ROUNDED
    return rounded if number == 0 and (rounded / "evaluation").exists() else run / f"round-{number}"


def _read(folder: Path, at_base: list[Response]) -> Evaluation:
    file = folder / "evaluation" / _SIGNALS
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None  # msgspec reads no infinity
    return Evaluation(results(_responses(folder), at_base), msgspec.convert(found, Signals | None))


def _responses(folder: Path) -> list[Response]:
    file = folder / "evaluation" / RESPONSES
    return read_records(file, Response) if file.exists() else []
