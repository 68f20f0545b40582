"""The history of a run: what each round leaves to sample from, its figures, and what is decided from them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import msgspec

from genius_lite.errors import NoPairError, UserError
from genius_lite.evaluate.guard import alarms, guard_status, round_metrics
from genius_lite.evaluate.record import Evaluation
from genius_lite.evaluate.results import at_best, mean_score, results
from genius_lite.evaluate.selection import Decision, RoundScore, select_checkpoint
from genius_lite.evaluate.signals import too_short
from genius_lite.pipeline.evaluation import BaseResult
from genius_lite.pipeline.round import Policy, Round, Session, drop_foreign
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.summary import cooling_lines, evaluation_lines, own_lines
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir import folder
from genius_lite.weights.quantize import type_name


class History:
    """The base model, then a round after the other. Each is shown, tracked, and decides which policy comes next."""

    def __init__(self, session: Session):
        self.session = session
        self.policies: list[Policy] = [session.own]
        """What each round leaves to sample from; the first is the user's own file."""
        self.reports: list[RoundReport] = []
        self.decision = Decision(0, 0)
        """The best round, which one to build on, and whether to go on."""
        self._scores: list[RoundScore] = []

    @property
    def next(self) -> int:
        return len(self.reports) + 1

    def next_policy(self) -> Policy | None:
        """Choose the policy to sample the next round from; None where there is to be none."""
        if self.decision.stop:
            self.session.progress.say(f"stopped: {self.decision.stop}")
        if self.decision.stop or len(self.reports) == self.session.job.recipe.rounds:
            return None
        return self.policies[self.decision.build_on]

    def end(self, why: NoPairError) -> None:
        """Take it that the next round cannot be: what the rounds before it made stays.

        Raises:
            NoPairError: there is none before it.
        """
        if not self.reports:
            out = self.session.job.recipe.out
            again = f"another recipe needs another `out`; --reuse {shlex.quote(out)} takes there what stays the same"
            raise NoPairError(f"{why}; {again}")
        self.decision = replace(self.decision, stop=str(why))

    def add_base(self, found: Evaluation) -> None:
        """Take the evaluation of the user's own file."""
        s = self.session
        for line in evaluation_lines(found):
            s.progress.say(f"base model: {line}")
        if seen := found.signals:
            recipe, thinking = s.job.recipe, seen.thinking > 0
            note = too_short(1 - seen.ended, recipe.answer_tokens, recipe.foresight.thought_tokens, thinking=thinking)
            if note:
                s.progress.say(f"warning: {note}")
        s.tracker.base(found)
        self._decide([RoundScore(0, found.scores)])
        s.progress.finished(RoundReport(0, score=mean_score(found.scores)), {}, self.decision.best)

    def add(
        self,
        r: Round,
        rollouts: Sequence[Rollout],
        pairs: Sequence[PreferencePair],
        base: BaseResult,
        tuned: Policy,
        found: Evaluation,
    ) -> None:
        """Take a trained round: what it learned from, the base model in its types, and the policy that it made."""

        def make_report() -> RoundReport:
            """Gather the round's figures, and what the collapse guard says of them; both are shown too."""
            here = r.folder.round(r.number)
            made = here.made()
            if not made.training:
                raise UserError(
                    f"{here.adapter} has no figures of its training; delete {here.path} to have it made anew"
                )
            metrics = round_metrics(found.signals, rollouts, pairs, made.training.accuracy, made.training.margin)
            alike = r.job.recipe.round_queries is None  # other queries' values are no rise or fall
            first = self.reports[0].metrics if self.reports and alike else None
            raised = alarms(r.job.recipe.guard, metrics, base.evaluation.signals, first)
            best = at_best(base.cooled, here.responses, r.job.recipe.rounds) if base.cooled else []
            to_own = {}
            if r.baseline.gguf != r.job.source.path:
                own = results(here.responses, r.folder.own.responses, r.job.recipe.rounds)
                to_own = {task.task: {kind: gain for kind, _, gain in task.accuracies if gain} for task in own}
                if r.number == 1:
                    for line in evaluation_lines(base.evaluation):
                        r.progress.say(f"base model in the rounds' types: {line}")
            alarm_lines = [f"{alarm.level}: {alarm.line}" for alarm in raised]
            for line in (*evaluation_lines(found), *cooling_lines(best), *own_lines(to_own), *alarm_lines):
                r.progress.say(f"round {r.number}: {line}")
            r.reopen()
            return msgspec.structs.replace(
                made,
                score=mean_score(found.scores),
                base_score=mean_score(base.evaluation.scores),
                evaluation=found.tasks,
                at_best=best,
                to_own=to_own,
                metrics=metrics,
                alarms=raised,
            )

        report: RoundReport = r.here.build_json(folder.REPORT, make_report, RoundReport)
        self.reports.append(report)
        self.policies.append(to_sample(r, tuned))
        base_score, score = RoundScore(0, base.evaluation.scores), RoundScore(r.number, found.scores, report.halted)
        self._decide([base_score, *self._scores[1:], score])
        r.tracker.round(report)
        r.progress.finished(RoundReport(0, score=report.base_score), {}, self.decision.best)
        lights = guard_status(r.job.recipe.guard, report, base.evaluation.signals)
        r.progress.finished(report, lights, self.decision.best)

    def _decide(self, scores: list[RoundScore]) -> None:
        recipe, self._scores = self.session.job.recipe, scores
        self.decision = select_checkpoint(recipe.evaluate, recipe.rounds, scores)


def to_sample(r: Round, tuned: Policy) -> Policy:
    """Return what stands for the round when the next one samples: its GGUF, or its adapter at the side of the base.

    It is the adapter where the recipe's `policy` says so, and where the wanted type does not keep what was learned.
    """
    assert tuned.adapter
    adapter, quantized = tuned.adapter, r.folder.round(r.number).quantized
    lost = not quantized or quantized.widened or not quantized.keeps
    if r.number == r.job.recipe.rounds or (r.job.recipe.policy != "adapter" and not lost):
        return tuned
    if lost:
        wanted = type_name(r.job.source, r.job.recipe.quantize.type)
        r.progress.say(f"round {r.number + 1} samples with the adapter at run time, as {wanted} loses too much")
    drop_foreign(r.here / folder.LORA)
    return Policy(r.baseline.gguf, adapter, r.here.build(folder.LORA, partial(r.write_lora, adapter)))
