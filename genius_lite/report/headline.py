"""What a run comes to, in a few figures and plain words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genius_lite.report.gather import Answered, RunData
from genius_lite.report.summary import choice_lines, chosen_on, surely, verdict
from genius_lite.results.evaluation import Commonest, Interval, TaskResult
from genius_lite.text import commonest, prose

_SURER = (
    "Sampled answers became better and the likeliest ones did not, while entropy fell: the base model may answer as "
    "well at a lower temperature."
)
_FELL = 0.8  # of the base model's entropy
_ROSE, _HALF = 0.2, 0.5  # of all answers: by so much more are the commonest one; so many, of a model that stated none


@dataclass(frozen=True)
class Change:
    """An accuracy before, after, and the gain; the last two are None where there is nothing yet."""

    name: str
    before: Interval
    after: Interval | None = None
    gain: Interval | None = None

    @property
    def tone(self) -> str:
        """Which way it went: better, worse or same."""
        return (self.gain and surely(self.gain)) or "same"

    @property
    def verdict(self) -> str:
        """What may be concluded."""
        if self.gain is None:
            return "Measured before training only, so far."
        return "Not told apart." if self.tone == "same" else f"{self.tone.capitalize()}."


def outcome(data: RunData) -> str:
    """Sum the run up: first of all whether answers became better."""
    if data.summary is None:
        return f"This run is {data.now}. What follows is what there is so far."
    told = [verdict(data.summary), *choice_lines(data.summary), f"Exported: {Path(data.summary.exported).name}."]
    return prose(" ".join(filter(None, told)))


def compared(data: RunData, answered: Answered) -> tuple[TaskResult, TaskResult | None]:
    """Find the base model's result on a task, and that of the round that is shown, if one has answered it yet."""
    base = [task for policy, task in answered if policy is data.base]
    tuned = [task for policy, task in answered if policy is data.shown and policy.number]
    return base[0] if base else answered[0][1], tuned[0] if tuned else None


def changes(data: RunData, before: TaskResult, after: TaskResult | None) -> list[Change]:
    """List what was measured of a task (as `compared`); what rounds are judged by comes first."""
    names = {
        "sampled": f"sampled at {before.temperature:g}, {before.samples} a problem",
        "mean of both": "mean of sampled and greedy",
    }
    now = {kind: (accuracy, difference) for kind, accuracy, difference in after.accuracies} if after else {}
    was = [(kind, old) for kind, old, _ in before.accuracies if kind in now or not after]
    found = [Change(names.get(kind, kind), old, *now.get(kind, ())) for kind, old in was[2:] + was[:2]]
    for row in (row for row in data.shown.report.at_best if row.task == before.task):
        name = f"each at its best temperature, {row.base_temperature:g} and {row.temperature:g}"
        found.append(Change(name, row.base, row.tuned, row.gain))
    return found


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
