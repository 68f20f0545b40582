"""What a run has come to: the policy after each round, its figures, and what is decided from them."""

from __future__ import annotations

from collections.abc import Sequence

from genius_lite.evaluate.guard import alarms, guard_status, round_metrics
from genius_lite.evaluate.record import Evaluation
from genius_lite.evaluate.results import at_best, mean_score
from genius_lite.evaluate.selection import Decision, RoundScore, select_checkpoint
from genius_lite.evaluate.signals import too_short
from genius_lite.pipeline.round import Policy, Round, Session
from genius_lite.pipeline.stages import BaseResult, to_sample
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.summary import cooling_lines, evaluation_lines
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.folder import REPORT


class History:
    """The base model, then a round after the other. What it is told it shows, tracks, and decides by."""

    def __init__(self, session: Session):
        self.session = session
        self.policies: list[Policy] = [session.own]
        """What each round leaves to sample from; the first is the user's own file."""
        self.reports: list[RoundReport] = []
        self._standings: list[RoundScore] = []
        self._course = Decision(0, 0)

    @property
    def best(self) -> int:
        """The round to export; 0 is the base model."""
        return self._course.best

    @property
    def stopped(self) -> str | None:
        """Why the run ends early, if it does."""
        return self._course.stop

    @property
    def halted(self) -> bool:
        """Whether that is the collapse guard's doing."""
        return self._course.halted

    @property
    def next(self) -> int:
        """The number of the round that comes next."""
        return len(self.reports) + 1

    def next_policy(self) -> Policy | None:
        """The policy to sample the next round from; None where there is to be none."""
        if self.stopped:
            self.session.progress.say(f"stopped: {self.stopped}")
        if self.stopped or len(self.reports) == self.session.job.recipe.rounds:
            return None
        return self.policies[self._course.build_on]

    def add_base(self, found: Evaluation) -> None:
        """Take the evaluation of the user's own file."""
        s = self.session
        for line in evaluation_lines(found):
            s.progress.say(f"base model: {line}")
        if found.signals and (note := too_short(1 - found.signals.ended, s.job.recipe.answer_tokens)):
            s.progress.say(f"warning: {note}")
        s.tracker.base(found)
        self._decide([RoundScore(0, found.scores)])
        s.progress.finished(RoundReport(0, score=mean_score(found.scores)), {}, self.best)

    def add(
        self,
        r: Round,
        rollouts: Sequence[Rollout],
        pairs: list[PreferencePair],
        base: BaseResult,
        tuned: Policy,
        found: Evaluation,
    ) -> None:
        """Take a trained round: what it learned from, the base model in its types, and the policy that it made."""
        r.here.build_json(REPORT, lambda: self._report(r, rollouts, pairs, base, found))
        report = r.folder.round(r.number).report
        assert report
        self.reports.append(report)
        self.policies.append(to_sample(r, tuned))
        against, now = RoundScore(0, base.evaluation.scores), RoundScore(r.number, found.scores, report.halted)
        self._decide([against, *self._standings[1:], now])
        r.tracker.round(report)
        r.progress.finished(RoundReport(0, score=report.base_score), {}, self.best)
        r.progress.finished(report, guard_status(r.job.recipe.guard, report), self.best)

    def _decide(self, standings: list[RoundScore]) -> None:
        self._standings = standings
        self._course = select_checkpoint(self.session.job.recipe.evaluate, self.session.job.recipe.rounds, standings)

    def _report(
        self,
        r: Round,
        rollouts: Sequence[Rollout],
        pairs: list[PreferencePair],
        base: BaseResult,
        found: Evaluation,
    ) -> RoundReport:
        """The round's figures, and what the collapse guard says of them; both are shown too."""
        made, here = r.folder.round(r.number).made(), r.folder.round(r.number)
        assert made.training
        metrics = round_metrics(found.signals, rollouts, pairs, made.training.accuracy, made.training.margin)
        first = self.reports[0].metrics if self.reports else None
        raised = alarms(r.job.recipe.guard, metrics, base.evaluation.signals, first)
        best = at_best(base.cooled, here.responses, r.job.recipe.rounds) if base.cooled else []
        said = [*evaluation_lines(found), *cooling_lines(best), *(f"{alarm.level}: {alarm.line}" for alarm in raised)]
        for line in said:
            r.progress.say(f"round {r.number}: {line}")
        return RoundReport(
            r.number,
            made.rollouts,
            made.failed,
            made.pairs,
            made.pairs_left_out,
            made.training,
            made.quantized,
            made.gguf_bytes,
            score=mean_score(found.scores),
            base_score=mean_score(base.evaluation.scores),
            evaluation=found.tasks,
            at_best=best,
            metrics=metrics,
            alarms=raised,
        )
