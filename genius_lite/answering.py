"""What the policy of a round answers when it is evaluated: to the recipe's tasks, and to the held-out queries."""

from __future__ import annotations

from genius_lite.evaluate.measure import Ended, Respondent, answer_tasks, observe, responses_wanted
from genius_lite.evaluate.results import Answers, Response
from genius_lite.evaluate.signals import Observed
from genius_lite.round import Policy, Round
from genius_lite.rundir import RecordLog


def answers_to_tasks(r: Round, policy: Policy, log: RecordLog[Answers], ended: Ended) -> list[Response]:
    """All of them, those of an earlier, interrupted run included; each problem's go into the log once they are there.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    job, cfg = r.job, r.job.recipe.evaluate
    if not job.tasks:
        return []
    done = sum(len(answers.responses) for answers in log.records)
    with r.progress.stage(f"{_who(r)}: tasks", responses_wanted(job.tasks, cfg), "responses", done=done) as advance:
        return answer_tasks(_respondent(r, policy), job.tasks, cfg, advance, ended, log, r.stop)


def answers_to_held_out(r: Round, policy: Policy, ended: Ended) -> list[Observed]:
    """Scored by the base model too; none if no query is held out."""
    job, samples = r.job, r.job.recipe.evaluate.query_samples
    if not job.watched:
        return []
    with r.progress.stage(f"{_who(r)}: held-out queries", len(job.watched) * samples, "responses") as advance:
        base = _respondent(r, r.baseline) if r.number else None
        return observe(_respondent(r, policy), base, job.watched, samples, advance, ended)


def _respondent(r: Round, policy: Policy) -> Respondent:
    settings = policy.settings(r.engine)
    return Respondent(policy.gguf, settings, r.job.recipe.answer_tokens, r.job.recipe.seed, r.here / "sampler.log")


def _who(r: Round) -> str:
    return f"round {r.number}" if r.number else "base model"
