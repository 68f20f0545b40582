"""Responses to problems, and what they say of a model: accuracies with intervals, and differences to the base model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from genius_lite.evaluate.statistics import (
    Interval,
    McNemar,
    mcnemar_exact,
    mean_accuracy,
    paired_difference,
    wilson,
)
from genius_lite.records import Finish

GREEDY = -1  # the `sample` of the likeliest response
_RESAMPLING_SEED = 0  # of the bootstrap: the same figures give the same interval


class Response(msgspec.Struct, frozen=True):
    """An answer to a problem, and what its checker says: 0 (wrong) to 1 (right). `tokens` is its length."""

    task: str
    problem: str
    sample: int
    text: str
    tokens: int
    finish: Finish
    score: float

    @property
    def right(self) -> bool:
        """Whether it is wholly right."""
        return self.score == 1


class Answers(msgspec.Struct, frozen=True):
    """All responses to one problem: the greedy one, if there is one, then the sampled ones."""

    task: str
    problem: str
    responses: list[Response]


class TaskResult(msgspec.Struct, frozen=True):
    """Accuracy on a task, the share of wholly right responses: greedy, and sampled at the recipe's temperature.

    Beside the base model: the paired difference of each, and McNemar's test of the greedy responses. `cut` is the share
    of responses that ran into `max_tokens`, `length` the mean in tokens, both over all of them.
    """

    task: str
    problems: int
    samples: int
    cut: float
    length: float
    greedy: Interval | None
    sampled: Interval | None
    greedy_gain: Interval | None = None
    sampled_gain: Interval | None = None
    mcnemar: McNemar | None = None

    @property
    def score(self) -> float:
        """What rounds are compared by: sampled accuracy, else greedy."""
        best = self.sampled or self.greedy
        assert best
        return best.estimate


def results(responses: Sequence[Response], base: Sequence[Response] = ()) -> list[TaskResult]:
    """Accuracies with 95 % intervals, a row a task, and the paired differences to the base model's responses.

    One sample a problem gives Wilson's interval, more of them a bootstrap over problems.
    """
    by_task, of_base = _by_task(responses), _by_task(base)
    return [_result(name, rows, of_base.get(name, [])) for name, rows in by_task.items()]


def _result(name: str, rows: list[Response], base: list[Response]) -> TaskResult:
    greedy, sampled = _scores(rows, greedy=True), _scores(rows, greedy=False)
    base_greedy, base_sampled = _scores(base, greedy=True), _scores(base, greedy=False)
    right = [scores[0] for scores in greedy.values()]
    base_right = [base_greedy[problem][0] for problem in greedy] if base_greedy else []
    return TaskResult(
        task=name,
        problems=len({row.problem for row in rows}),
        samples=len({row.sample for row in rows} - {GREEDY}),
        cut=sum(row.finish == "length" for row in rows) / len(rows),
        length=sum(row.tokens for row in rows) / len(rows),
        greedy=_accuracy(greedy),
        sampled=_accuracy(sampled),
        greedy_gain=_gain(base_greedy, greedy),
        sampled_gain=_gain(base_sampled, sampled),
        mcnemar=mcnemar_exact(base_right, right) if base_right else None,
    )


def _accuracy(scores: dict[str, list[float]]) -> Interval | None:
    if not scores:
        return None
    first = [samples[0] for samples in scores.values()]
    if all(len(samples) == 1 for samples in scores.values()):
        return wilson(sum(first), len(first))
    return mean_accuracy(list(scores.values()), _RESAMPLING_SEED)


def _gain(base: dict[str, list[float]], tuned: dict[str, list[float]]) -> Interval | None:
    if not base or not tuned:
        return None
    return paired_difference([base[problem] for problem in tuned], list(tuned.values()), _RESAMPLING_SEED)


def _scores(rows: list[Response], *, greedy: bool) -> dict[str, list[float]]:
    """Problem -> 1 or 0 for each of its responses of one kind: partial credit is no right answer."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (row.sample == GREEDY) == greedy:
            found[row.problem].append(float(row.right))
    return found


def _by_task(responses: Sequence[Response]) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        found[response.task].append(response)
    return found
