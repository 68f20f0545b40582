"""What a round's `evaluation/` folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.evaluate.best import judged_by
from genius_lite.evaluate.results import Answers, Response, Scores, TaskResult, choosing_scores, results
from genius_lite.evaluate.signals import Signals
from genius_lite.records import FailedQuery
from genius_lite.rundir import ROUNDED, read_records, write_json, write_records

ANSWERS = "answers.jsonl"
"""Beside the folder while it is made: the answers so far, a line for each problem."""
COOLED = "cooled.json"
"""Beside the folder of the base model: what it does at other temperatures."""
RESPONSES, _SIGNALS, _FAILED = "responses.jsonl", "signals.json", "failed.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What a policy's answers show: of the problems that report, and the `scores` that it is compared by.

    `signals` is None where no query is held out.
    """

    tasks: list[TaskResult]
    signals: Signals | None
    scores: Scores


def write_evaluation(
    folder: Path, answers: Sequence[Answers], signals: Signals | None, failed: Sequence[FailedQuery] = ()
) -> None:
    """Fill a round's folder, which exists.

    Args:
        failed: held-out queries that llama.cpp did not survive; problems say it themselves.
    """
    responses = [response for one in answers for response in one.responses]
    if responses:
        write_records(folder / RESPONSES, responses)
    if signals:
        write_json(folder / _SIGNALS, signals)
    failures = [FailedQuery(one.problem, one.failure) for one in answers if one.failure]
    if failures or failed:
        write_records(folder / _FAILED, [*failures, *failed])


def read_evaluation(run: Path, number: int, rounds: int = 1) -> Evaluation:
    """The evaluation of a run's round, its tasks beside those of the base model, which is round 0.

    The base model is the one that went through the rounding of the rounds; the user's own file where that is the same.

    Args:
        rounds: as in `results`.
    """
    folder = folder_of(run, number)
    base = folder_of(run, 0)
    return _read(folder, _responses(base) if number else [], rounds, _signals(base))


def read_own(folder: Path) -> Evaluation:
    """The evaluation in a folder, which has one, beside nothing."""
    return _read(folder, [], 1, _signals(folder))


def read_responses(run: Path, number: int) -> list[Response]:
    """Every response to a task in a run's round; none where it has none."""
    return _responses(folder_of(run, number))


def folder_of(run: Path, number: int) -> Path:
    """Where the `evaluation` of a round lies, or would lie; of round 0 that which rounds are told against."""
    rounded = run / ROUNDED
    return rounded if number == 0 and (rounded / "evaluation").exists() else run / f"round-{number}"


def _read(folder: Path, at_base: list[Response], rounds: int, base: Signals | None) -> Evaluation:
    responses, signals = _responses(folder), _signals(folder)
    scores = judged_by(choosing_scores(responses), signals, base)
    return Evaluation(results(responses, at_base, rounds), signals, scores)


def _signals(folder: Path) -> Signals | None:
    file = folder / "evaluation" / _SIGNALS
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None  # msgspec reads no infinity
    return msgspec.convert(found, Signals | None)


def _responses(folder: Path) -> list[Response]:
    file = folder / "evaluation" / RESPONSES
    return read_records(file, Response) if file.exists() else []
