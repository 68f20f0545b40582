"""Which round is the best so far, which one the next round builds on, and whether there is to be a next round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genius_lite.evaluate.results import TaskResult
from genius_lite.evaluate.signals import Signals
from genius_lite.recipe import Evaluate

_PARSED = 0.5  # share of the responses that must state a final answer before their agreement says anything


@dataclass(frozen=True)
class Standing:
    """A round (0 is the base model): its score, None where nothing can judge it; and whether the guard halted it."""

    number: int
    score: float | None
    halted: bool = False


@dataclass(frozen=True)
class Course:
    """Where the run stands: the `best` round, the one to `build_on`, why to `stop`, and if it was the guard's doing."""

    best: int
    build_on: int
    stop: str | None = None
    halted: bool = False


def standing_score(tasks: Sequence[TaskResult], signals: Signals | None) -> float | None:
    """What rounds are compared by: the mean accuracy over tasks; without a task, the agreement of final answers.

    Agreement is self-consistency (Wang et al., arXiv 2203.11171): the share of a query's responses that give the most
    frequent answer. It needs no label and rises with accuracy, but also as a policy collapses onto one answer: that is
    what the guard is for, whose halted rounds are never the best. None where too few responses state an answer.
    """
    if tasks:
        return sum(result.score for result in tasks) / len(tasks)
    return signals.agreement if signals and signals.parsed >= _PARSED else None


def course(cfg: Evaluate, standings: Sequence[Standing]) -> Course:
    """Decide from all rounds so far, the base model first.

    The best round has the highest score, the earlier of equal ones. Where nothing can judge, it is the latest round
    that the guard let pass.
    """
    latest = standings[-1]
    healthy = [s for s in standings if not s.halted]
    judged = [s for s in healthy if s.score is not None]
    best = max(judged, key=lambda s: s.score or 0.0) if len(judged) > 1 else healthy[-1]
    build_on = best if cfg.rollback and (best.score or 0.0) > (latest.score or 0.0) else latest
    if latest.halted:
        return Course(best.number, best.number, f"the collapse guard halted round {latest.number}", True)
    waited = latest.number - best.number
    if cfg.patience and waited >= cfg.patience:
        return Course(best.number, build_on.number, f"no better round in {waited}")
    return Course(best.number, build_on.number)
