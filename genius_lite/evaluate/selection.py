"""Which round is the best so far, which one the next round builds on, and whether there is to be a next round.

Evidence decides, not the higher figure: a policy that did not change differs from itself by several points whenever it
is asked again. Of two rounds one is worse only where the interval of their paired difference lies below 0; else they
are not told apart, and the later one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genius_lite.evaluate.results import gain
from genius_lite.evaluate.statistics import confidence_of_each, mean_of
from genius_lite.recipe import Evaluate
from genius_lite.results.evaluation import Interval, Scores, Signals

_PARSED = 0.5  # share of the responses that must state a final answer before their agreement says anything
_HELD_OUT = "held-out queries"


@dataclass(frozen=True)
class RoundScore:
    """A round (0 is the base model): what it is judged by, empty where nothing can; and whether the guard halted it."""

    number: int
    scores: Scores
    halted: bool = False


@dataclass(frozen=True)
class Decision:
    """Where the run stands: the `best` round, the one to `build_on`, why to `stop`, and if it was the guard's doing."""

    best: int
    build_on: int
    stop: str | None = None
    halted: bool = False


def judged_by(tasks: Scores, signals: Signals | None, base: Signals | None) -> Scores:
    """What a round is compared by: its scores on the problems that choose; without a task, the agreement of answers.

    Agreement is self-consistency (Wang et al., arXiv 2203.11171). It rises with accuracy, but also as a policy comes to
    give one answer to all: the guard halts such rounds. Empty where too few responses of `base`, the base model, state
    an answer.
    """
    if tasks:
        return tasks
    told = signals and signals.agreements and base and base.parsed >= _PARSED
    return {_HELD_OUT: signals.agreements} if signals and told else {}


def difference(before: Scores, after: Scores, confidence: float) -> Interval | None:
    """Mean over tasks of the mean of after - before over the problems that both have; None where they share none."""
    gains = [gain(before.get(task, {}), scores, confidence) for task, scores in after.items()]
    found = [each for each in gains if each]
    return mean_of(found) if found else None


def select_checkpoint(cfg: Evaluate, rounds: int, scores_by_round: Sequence[RoundScore]) -> Decision:
    """Decide from all rounds so far, the base model first.

    The best round is the latest that is not worse than the base model, nor than the best before it, and that the guard
    let pass. One that cannot be compared, where the base model can, is neither better nor worse, and never the best.
    With `patience`, the run stops after so many rounds in a row that are worse.

    Args:
        rounds: of the whole run. Each is compared as one of so many (Bonferroni), so that the error is the run's.
    """
    base, best, worse = scores_by_round[0], scores_by_round[0], 0
    for now in scores_by_round[1:]:
        if now.halted:
            continue
        others = [base] if best is base else [base, best]
        found = [difference(other.scores, now.scores, confidence_of_each(rounds)) for other in others]
        if base.scores and not found[0]:
            continue
        if any(interval and interval.high < 0 for interval in found):
            worse += 1
        else:
            best, worse = now, 0
    latest = scores_by_round[-1]
    if latest.halted:
        return Decision(best.number, best.number, f"the collapse guard halted round {latest.number}", True)
    build_on = best.number if cfg.rollback else latest.number
    if cfg.patience and worse >= cfg.patience:
        times = f"{worse} rounds in a row are" if worse > 1 else f"round {latest.number} is"
        than = f"round {best.number}" if best.number else "the base model"
        return Decision(best.number, build_on, f"{times} worse than {than}")
    return Decision(best.number, build_on)
