"""What a run comes to, in a few figures and plain words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genius_lite.report.gather import RunData
from genius_lite.report.summary import choice_lines, chosen_on, surely, verdict
from genius_lite.results.evaluation import AtBest, Commonest, Interval, TaskResult
from genius_lite.text import commonest, gain, interval, percent, prose

_SURER = (
    "Sampled answers became better and the likeliest ones did not, while entropy fell: the base model may answer as "
    "well at a lower temperature."
)
_FELL = 0.8  # of the base model's entropy
_ROSE, _HALF = 0.2, 0.5  # of all answers: by so much more are the commonest one; so many, of a model that stated none


@dataclass(frozen=True)
class Change:
    """Before and after (empty where there is nothing yet) of one figure, and beside each its interval.

    `verdict` says what may be concluded, `tone` is better, worse or same.
    """

    name: str
    before: str
    after: str
    beside: tuple[str, str] = ("", "")
    gain: str = ""
    verdict: str = ""
    tone: str = "same"


@dataclass(frozen=True)
class TaskChange:
    """A task: the base model beside the round that is shown."""

    task: str
    problems: int
    changes: list[Change]


def outcome(data: RunData) -> str:
    """Sum the run up: first of all whether answers became better."""
    if data.summary is None:
        return f"This run is {data.now}. What follows is what there is so far."
    told = [verdict(data.summary), *choice_lines(data.summary), f"Exported: {Path(data.summary.exported).name}."]
    return prose(" ".join(filter(None, told)))


def task_changes(data: RunData) -> list[TaskChange]:
    """Compare every task before and after; nothing is after where no round has answered it yet."""
    after = {task.task: task for task in data.shown.tasks if data.shown.number}
    before = {task.task: task for task in data.base.tasks}
    first = {name: before.get(name, measured[0][1]) for name, measured in data.by_task.items()}
    cooled = {row.task: row for row in data.shown.report.at_best}
    return [
        TaskChange(prose(name), task.problems, _changes(task, after.get(name), cooled.get(name)))
        for name, task in first.items()
    ]


def notes(data: RunData) -> list[str]:
    """Say what the figures of the tasks do not by themselves."""
    found = [chosen_on(data.shown.tasks)]
    before, after = data.base.signals, data.shown.signals
    if before and after and after.entropy < _FELL * before.entropy and any(map(_only_sampled, data.shown.tasks)):
        found.append(_SURER)
    former = {task.task: task.commonest for task in data.base.tasks}
    if data.shown.number:
        found += [_one_answer(task, former.get(task.task)) for task in data.shown.tasks]
    return [line for line in found if line]


def _changes(before: TaskResult, after: TaskResult | None, cooled: AtBest | None) -> list[Change]:
    """List what was measured of a task; what rounds are judged by comes first."""
    names = {
        "sampled": f"sampled at {before.temperature:g}, {before.samples} a problem",
        "mean of both": "mean of sampled and greedy",
    }
    now = {kind: (accuracy, difference) for kind, accuracy, difference in after.accuracies} if after else {}
    was = [(kind, old) for kind, old, _ in before.accuracies if kind in now or not after]
    found = [(names.get(kind, kind), old, *now.get(kind, (None, None))) for kind, old in was[2:] + was[:2]]
    if cooled:
        name = f"each at its best temperature, {cooled.base_temperature:g} and {cooled.temperature:g}"
        found.append((name, cooled.base, cooled.tuned, cooled.gain))
    return [
        Change(
            name,
            percent(old.estimate, 1),
            percent(new.estimate, 1) if new else "",
            (interval(old), interval(new) if new else ""),
            f"{gain(difference)} points" if difference else "",
            *_told(difference),
        )
        for name, old, new, difference in found
    ]


def _only_sampled(task: TaskResult) -> bool:
    """Say whether sampled answers surely became better, and greedy ones did not."""
    sampled, greedy = task.sampled_gain, task.greedy_gain
    return bool(sampled and greedy and sampled.low > 0 >= greedy.low)


def _one_answer(task: TaskResult, before: Commonest | None) -> str:
    """Say it if the tuned model gives many more of the problems one and the same answer."""
    after = task.commonest
    if not after or after.share < (before.share + _ROSE if before else _HALF) - 1e-9:
        return ""
    was = f"the base model's was {commonest(before)}" if before else "the base model states hardly any"
    return (
        f"On {prose(task.task)} the commonest answer is {commonest(after)} of those stated ({was}): a gain may come "
        "from one answer to everything, which is right where that is."
    )


def _told(difference: Interval | None) -> tuple[str, str]:
    """What may be concluded, and its tone."""
    if difference is None:
        return "Measured before training only, so far.", "same"
    how = surely(difference)
    return f"{how.capitalize() or 'Not told apart'}.", how or "same"
