"""Responses to problems, and what they say of a model: accuracies with intervals, and differences to the base model.

Sharpening a model and sampling it cooler look alike at temperature 1. So the base model is measured at the temperatures
of a small sweep too. Problems that choose between rounds choose the best, and the others tell what it is worth.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from statistics import fmean
from typing import Literal, TypeVar

from genius_lite.evaluate.signals import commonest
from genius_lite.evaluate.statistics import (
    confidence_of_each,
    mcnemar_exact,
    mean_accuracy,
    paired_difference,
    share_among,
    wilson,
)
from genius_lite.results.evaluation import GREEDY, Answers, AtBest, Cooled, Interval, Response, Scores, TaskResult

_MOST_SUBSETS = 100  # of a problem's samples, whose votes are counted one by one

K = TypeVar("K")


def results(responses: Sequence[Response], base: Sequence[Response] = (), rounds: int = 1) -> list[TaskResult]:
    """Accuracies of the problems that report, with 95 % intervals, and paired differences to the base; a row a task.

    Args:
        rounds: among which the one with these responses may have been chosen. Where the problems that chose are those
            that report, the intervals of gains are as wide as so many comparisons ask for (Bonferroni).
    """
    of_base = _by_task(_used_to("report", base))
    by_task = _by_task(_used_to("report", responses))
    return [_result(name, rows, of_base.get(name, []), rounds) for name, rows in by_task.items()]


def complaints(answers: Sequence[Answers]) -> list[str]:
    """A line for each problem that llama.cpp did not survive, and for each task with responses that took too long."""
    lines = [f"{one.task}, problem {one.problem} failed: {one.failure}" for one in answers if one.failure]
    slow = Counter(one.task for one in answers for response in one.responses if response.timed_out)
    return lines + [
        f"{task}: its checker took too long for {count} responses, which count as wrong" for task, count in slow.items()
    ]


def mean_score(scores: Scores) -> float | None:
    """Mean over tasks of their means over problems; None of nothing."""
    return fmean(fmean(of.values()) for of in scores.values()) if scores else None


def choosing_scores(responses: Sequence[Response]) -> Scores:
    """Task -> problem -> score, of the problems that choose between rounds: the mean of greedy and sampled accuracy."""
    return {name: _accuracies(rows)[2] for name, rows in _by_task(_used_to("choose", responses)).items()}


def gain(base: dict[str, float], tuned: dict[str, float], confidence: float) -> Interval | None:
    """Mean of tuned - base over the problems that both have a score of; None where they share none."""
    both = [problem for problem in tuned if problem in base]
    if not both:
        return None
    return paired_difference([base[p] for p in both], [tuned[p] for p in both], confidence)


def by_temperature(responses: Sequence[Response], use: Literal["choose", "report"]) -> dict[float, Scores]:
    """Temperature -> what was right there, of the problems of this use."""
    found = _grouped(_used_to(use, responses), lambda r: 0.0 if r.sample == GREEDY else r.temperature)
    return {at: {task: _right(of) for task, of in _by_task(rows).items()} for at, rows in found.items()}


def votes(responses: Sequence[Response]) -> Scores:
    """Task -> problem -> whether the vote of its samples is right (of a tie the mean), of the problems that report."""
    drawn = [row for row in _used_to("report", responses) if row.sample != GREEDY]
    return {
        task: {problem: _vote(of) for problem, of in _by_problem(rows).items()}
        for task, rows in _by_task(drawn).items()
    }


def best_temperature(tried: dict[float, Scores]) -> float:
    """The temperature with the highest mean; of equal ones the highest, which gives most variety."""
    return max(tried, key=lambda at: (mean_score(tried[at]) or 0.0, at))


def at_best(cooled: Cooled, responses: Sequence[Response], rounds: int) -> list[AtBest]:
    """A round's responses beside the cooled base model, a row a task; what only one of them answered is left out.

    Args:
        rounds: as in `results`.
    """
    choosing, reporting = by_temperature(responses, "choose"), by_temperature(responses, "report")
    if not choosing or not reporting:
        return []
    best = best_temperature(choosing)
    chosen_on = {r.task for r in responses if r.use == "both"}
    samples = Counter((r.task, r.problem) for r in responses if r.sample != GREEDY)
    found = []
    for task, tuned in reporting.get(best, {}).items():
        base = cooled.scores.get(task, {})
        if difference := gain(base, tuned, confidence_of_each(rounds if task in chosen_on else 1)):
            both = [p for p in tuned if p in base]
            before, after = (
                _mean_accuracy({p: of[p] for p in both}, single=not at or max(samples[task, p] for p in both) == 1)
                for of, at in ((base, cooled.temperature), (tuned, best))
            )
            found.append(AtBest(task, cooled.temperature, before, best, after, difference))
    return found


def _result(name: str, rows: list[Response], base: list[Response], rounds: int) -> TaskResult:
    greedy, sampled, judged = _accuracies(rows)
    base_greedy, base_sampled, base_judged = _accuracies(base)
    both = [problem for problem in greedy if problem in base_greedy]
    chosen_on = any(row.use == "both" for row in rows)
    confidence = confidence_of_each(rounds if chosen_on else 1)
    drawn = list(_by_problem(row for row in rows if row.sample != GREEDY).values())
    samples = max(map(len, drawn), default=0)
    ended = [[row for row in of if row.finish == "end"] for of in _by_problem(rows).values()]
    right_of_ended = [sum(row.right for row in of) for of in ended]
    return TaskResult(
        task=name,
        problems=len(judged),
        samples=samples,
        cut=fmean(row.finish == "length" for row in rows),
        length=fmean(row.tokens for row in rows),
        greedy=_mean_accuracy(greedy, single=True) if greedy else None,
        sampled=_mean_accuracy(sampled, single=samples == 1) if sampled else None,
        judged=_mean_accuracy(judged, single=(samples or 1) == 1 and not (greedy and drawn)),
        of_ended=share_among(right_of_ended, [len(of) for of in ended]) if any(ended) else None,
        commonest=commonest([row.answer for row in of] for of in ended),
        most=_by_number(drawn, _most),
        some=_by_number(drawn, _some),
        temperature=next((row.temperature for row in rows if row.sample != GREEDY), 0.0),
        timed_out=sum(row.timed_out for row in rows),
        chosen_on=chosen_on,
        confidence=confidence,
        greedy_gain=gain(base_greedy, greedy, confidence),
        sampled_gain=gain(base_sampled, sampled, confidence),
        judged_gain=gain(base_judged, judged, confidence),
        mcnemar=mcnemar_exact([base_greedy[p] for p in both], [greedy[p] for p in both]) if both else None,
    )


def _accuracies(rows: Sequence[Response]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Problem -> accuracy of its greedy response, of its sampled ones, and the mean of these two."""
    greedy = _right(row for row in rows if row.sample == GREEDY)
    sampled = _right(row for row in rows if row.sample != GREEDY)
    problems = dict.fromkeys(row.problem for row in rows)
    return greedy, sampled, {p: fmean(kind[p] for kind in (greedy, sampled) if p in kind) for p in problems}


def _right(rows: Iterable[Response]) -> dict[str, float]:
    """Problem -> the share of its responses that are right: partial credit is no right answer."""
    return {problem: fmean(row.right for row in of) for problem, of in _by_problem(rows).items()}


def _mean_accuracy(by_problem: dict[str, float], *, single: bool) -> Interval:
    """Average over problems: with a `single` response to each Wilson's interval, else a bootstrap."""
    scores = list(by_problem.values())
    return wilson(sum(scores), len(scores)) if single else mean_accuracy(scores)


def _by_number(drawn: list[list[Response]], of: Callable[[list[Response], int], float]) -> dict[str, Interval]:
    """For 1, 2, 4 and so on samples, and for all of them, the mean over problems."""
    most = min(map(len, drawn), default=0)
    numbers = sorted({*(2**n for n in range(most.bit_length())), most} - {0})
    return {str(k): mean_accuracy([of(rows, k) for rows in drawn]) for k in numbers}


def _some(rows: list[Response], k: int) -> float:
    """The unbiased share of sets of k responses that hold a right one."""
    wrong = sum(not row.right for row in rows)
    return 1 - math.comb(wrong, k) / math.comb(len(rows), k)


def _most(rows: list[Response], k: int) -> float:
    """How often the vote of k responses is right: the mean over sets of k; of k in a row if those are very many."""
    if math.comb(len(rows), k) > _MOST_SUBSETS:
        return fmean(_vote(rows[start : start + k]) for start in range(len(rows) - k + 1))
    return fmean(_vote(chosen) for chosen in combinations(rows, k))


def _vote(rows: Sequence[Response]) -> float:
    """Whether the most frequent answer is right; of equally frequent ones the mean. Who does not end does not vote."""
    voting = [row for row in rows if row.answer is not None and row.finish == "end"]
    if not voting:
        return 0.0
    votes = Counter(row.answer for row in voting)
    ahead = [answer for answer, count in votes.items() if count == max(votes.values())]
    return fmean(fmean(row.right for row in voting if row.answer == answer) for answer in ahead)


def _used_to(use: Literal["choose", "report"], responses: Iterable[Response]) -> list[Response]:
    return [response for response in responses if response.use in (use, "both")]


def _by_task(responses: Iterable[Response]) -> dict[str, list[Response]]:
    return _grouped(responses, lambda response: response.task)


def _by_problem(responses: Iterable[Response]) -> dict[str, list[Response]]:
    return _grouped(responses, lambda response: response.problem)


def _grouped(responses: Iterable[Response], key: Callable[[Response], K]) -> dict[K, list[Response]]:
    found: dict[K, list[Response]] = defaultdict(list)
    for response in responses:
        found[key(response)].append(response)
    return found
