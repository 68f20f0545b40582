"""What a policy's answers show, written to the `evaluation/` folder of its round, and read from there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.evaluate.results import choosing_scores, results
from genius_lite.evaluate.selection import judged_by
from genius_lite.records import FailedQuery
from genius_lite.results.evaluation import Answers, Scores, Signals, TaskResult
from genius_lite.rundir.folder import FAILED_FILE, RESPONSES, SIGNALS, write_json
from genius_lite.rundir.lines import write_records
from genius_lite.rundir.reader import RoundFolder


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
    """Fill a round's folder, which exists. Of signals NaN, which JSON has not, is written as infinity: either halts.

    Args:
        failed: held-out queries that llama.cpp did not survive; problems say it themselves.
    """
    responses = [response for one in answers for response in one.responses]
    if responses:
        write_records(folder / RESPONSES, responses)
    if signals:
        broken = {name: math.inf for name, figure in msgspec.structs.asdict(signals).items() if figure != figure}
        write_json(folder / SIGNALS, msgspec.structs.replace(signals, **broken))
    failures = [FailedQuery(one.problem, one.failure) for one in answers if one.failure]
    if failures or failed:
        write_records(folder / FAILED_FILE, [*failures, *failed])


def read_evaluation(here: RoundFolder, base: RoundFolder | None = None, rounds: int = 1) -> Evaluation:
    """Read the evaluation in a round's folder, beside that of the base model, if this is another.

    Args:
        rounds: as in `results`.
    """
    found = results(here.responses, base.responses if base else [], rounds)
    return Evaluation(found, here.signals, read_scores(here, base))


def read_scores(here: RoundFolder, base: RoundFolder | None = None) -> Scores:
    """Read the `scores` of `read_evaluation` alone, without its intervals, which take seconds of many problems."""
    return judged_by(choosing_scores(here.responses), here.signals, (base or here).signals)
