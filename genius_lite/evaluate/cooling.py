"""Would a lower temperature have done it? Sharpening a model and sampling it cooler look alike at temperature 1.

So the base model is measured at the temperatures of a small sweep too, and what was learned is set beside the best of
them. Problems that choose between rounds choose the temperature, and the others tell what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from genius_lite.evaluate.results import RESAMPLING_SEED, mean_score
from genius_lite.evaluate.statistics import mean_accuracy, paired_difference
from genius_lite.results.evaluation import GREEDY, AtBest, Cooled, Response, Scores


def shares(responses: Sequence[Response], *, choosing: bool) -> dict[float, Scores]:
    """Temperature -> what was right there, of the problems that choose, or of those that report."""
    found: dict[float, dict[str, dict[str, list[bool]]]] = {}
    for r in responses:
        if r.use != ("report" if choosing else "choose"):
            at = 0.0 if r.sample == GREEDY else r.temperature
            found.setdefault(at, {}).setdefault(r.task, {}).setdefault(r.problem, []).append(r.right)
    return {
        at: {task: {problem: fmean(right) for problem, right in of.items()} for task, of in tasks.items()}
        for at, tasks in found.items()
    }


def best_of(by_temperature: dict[float, Scores]) -> float:
    """The temperature with the highest mean; of equal ones the highest, which gives most variety."""
    return max(by_temperature, key=lambda at: (mean_score(by_temperature[at]) or 0.0, at))


def at_best(cooled: Cooled, responses: Sequence[Response], rounds: int) -> list[AtBest]:
    """A round's responses beside the cooled base model, a row a task; what only one of them answered is left out.

    Args:
        rounds: as in `results.results`.
    """
    choosing, reporting = shares(responses, choosing=True), shares(responses, choosing=False)
    if not choosing or not reporting:
        return []
    best = best_of(choosing)
    used_twice = {r.task for r in responses if r.use == "both"}
    found = []
    for task, tuned in reporting.get(best, {}).items():
        base = cooled.scores.get(task, {})
        both = [problem for problem in tuned if problem in base]
        if not both:
            continue
        before, after = [[base[p]] for p in both], [[tuned[p]] for p in both]
        confidence = 1 - 0.05 / rounds if task in used_twice else 0.95
        found.append(
            AtBest(
                task,
                cooled.temperature,
                mean_accuracy(before, RESAMPLING_SEED),
                best,
                mean_accuracy(after, RESAMPLING_SEED),
                paired_difference(before, after, confidence),
            )
        )
    return found
