"""Responses to problems, and what they say of a model: accuracies with intervals, and differences to the base model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

from genius_lite.evaluate.statistics import mcnemar_exact, mean_accuracy, paired_difference, share_among, wilson
from genius_lite.results.evaluation import GREEDY, Answers, Interval, Response, Scores, TaskResult

RESAMPLING_SEED = 0  # of the bootstrap: the same figures give the same interval
_MOST_SUBSETS = 100  # of a problem's samples, whose votes are counted one by one


def results(responses: Sequence[Response], base: Sequence[Response] = (), rounds: int = 1) -> list[TaskResult]:
    """Accuracies with 95 % intervals, a row a task, and the paired differences to the base model's responses.

    One sample a problem gives Wilson's interval, more of them a bootstrap over problems. Problems that only choose
    between rounds are left out.

    Args:
        rounds: among which the one with these responses may have been chosen. Where the problems that chose are those
            that report, the intervals of gains are as wide as so many comparisons ask for (Bonferroni).
    """
    reporting = [r for r in responses if r.use != "choose"]
    by_task, of_base = _by_task(reporting), _by_task([r for r in base if r.use != "choose"])
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
    by_task = _by_task([r for r in responses if r.use != "report"])
    return {name: {p: scores[0] for p, scores in _judged(rows).items()} for name, rows in by_task.items()}


def _result(name: str, rows: list[Response], base: list[Response], rounds: int) -> TaskResult:
    greedy, sampled, judged = _scores(rows, greedy=True), _scores(rows, greedy=False), _judged(rows)
    base_greedy = _scores(base, greedy=True)
    both = [problem for problem in greedy if problem in base_greedy]
    chosen_on = any(row.use == "both" for row in rows)
    confidence = 1 - 0.05 / rounds if chosen_on else 0.95
    drawn = _drawn(rows)
    return TaskResult(
        task=name,
        problems=len(judged),
        samples=max(map(len, drawn.values()), default=0),
        cut=fmean(row.finish == "length" for row in rows),
        length=fmean(row.tokens for row in rows),
        greedy=_accuracy(greedy),
        sampled=_accuracy(sampled),
        judged=mean_accuracy(list(judged.values()), RESAMPLING_SEED),
        of_ended=_of_ended(rows),
        most=_by_number(drawn, _most),
        some=_by_number(drawn, _some),
        temperature=next((row.temperature for row in rows if row.sample != GREEDY), 0.0),
        timed_out=sum(row.timed_out for row in rows),
        chosen_on=chosen_on,
        greedy_gain=_gain(base_greedy, greedy, confidence),
        sampled_gain=_gain(_scores(base, greedy=False), sampled, confidence),
        judged_gain=_gain(_judged(base), judged, confidence),
        mcnemar=mcnemar_exact([base_greedy[p][0] for p in both], [greedy[p][0] for p in both]) if both else None,
    )


def _accuracy(scores: dict[str, list[float]]) -> Interval | None:
    if not scores:
        return None
    first = [samples[0] for samples in scores.values()]
    if all(len(samples) == 1 for samples in scores.values()):
        return wilson(sum(first), len(first))
    return mean_accuracy(list(scores.values()), RESAMPLING_SEED)


def _gain(base: dict[str, list[float]], tuned: dict[str, list[float]], confidence: float) -> Interval | None:
    both = [problem for problem in tuned if problem in base]
    if not both:
        return None
    return paired_difference([base[p] for p in both], [tuned[p] for p in both], confidence)


def _of_ended(rows: list[Response]) -> Interval | None:
    of = defaultdict[str, list[Response]](list)
    for row in rows:
        of[row.problem].append(row)
    right = [sum(row.right for row in rows if row.finish == "end") for rows in of.values()]
    ended = [sum(row.finish == "end" for row in rows) for rows in of.values()]
    return share_among(right, ended, RESAMPLING_SEED) if any(ended) else None


def _scores(rows: Sequence[Response], *, greedy: bool) -> dict[str, list[float]]:
    """Problem -> 1 or 0 for each of its responses of one kind: partial credit is no right answer."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (row.sample == GREEDY) == greedy:
            found[row.problem].append(float(row.right))
    return found


def _judged(rows: Sequence[Response]) -> dict[str, list[float]]:
    """Problem -> the mean of its greedy and of its sampled accuracy, as a list of one."""
    kinds = [_scores(rows, greedy=True), _scores(rows, greedy=False)]
    problems = dict.fromkeys(row.problem for row in rows)
    return {p: [fmean(fmean(kind[p]) for kind in kinds if p in kind)] for p in problems}


def _drawn(rows: Sequence[Response]) -> dict[str, list[Response]]:
    """Problem -> its sampled responses."""
    found: dict[str, list[Response]] = defaultdict(list)
    for row in rows:
        if row.sample != GREEDY:
            found[row.problem].append(row)
    return found


def _by_number(drawn: dict[str, list[Response]], of: Callable[[list[Response], int], float]) -> dict[str, Interval]:
    """For 1, 2, 4 and so on samples, and for all of them, the mean over problems."""
    most = min(map(len, drawn.values()), default=0)
    numbers = sorted({*(2**n for n in range(most.bit_length())), most} - {0})
    return {str(k): mean_accuracy([[of(rows, k)] for rows in drawn.values()], RESAMPLING_SEED) for k in numbers}


def _some(rows: list[Response], k: int) -> float:
    """The unbiased share of sets of k responses that hold a right one."""
    wrong = sum(not row.right for row in rows)
    return 1 - math.comb(wrong, k) / math.comb(len(rows), k)


def _most(rows: list[Response], k: int) -> float:
    """How often the vote of k responses is right; the mean over sets of k, the first ones if those are very many."""
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


def _by_task(responses: Sequence[Response]) -> dict[str, list[Response]]:
    found: dict[str, list[Response]] = defaultdict(list)
    for response in responses:
        found[response.task].append(response)
    return found
