"""What the policy of a round answers when it is evaluated: to the recipe's tasks, and to the held-out queries."""

from __future__ import annotations

from genius_lite.evaluate.measure import Ended, answer_tasks, observe, responses_wanted
from genius_lite.evaluate.results import Answers, Response
from genius_lite.evaluate.signals import Observed
from genius_lite.round import Policy, Round
from genius_lite.rundir import RecordLog


def answers_to_tasks(r: Round, policy: Policy, log: RecordLog[Answers], ended: Ended) -> list[Response]:
    """All of them, those of an earlier, interrupted run included; each problem's go into the log once they are there.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    job, cfg, known = r.job, r.job.recipe.evaluate, list(log.records)
    if not job.tasks:
        return []
    done = sum(len(answers.responses) for answers in known)
    with r.progress.stage(f"{_who(r)}: tasks", responses_wanted(job.tasks, cfg), "responses", done=done) as advance:
        return answer_tasks(
            policy.gguf,
            policy.settings(r.engine),
            job.tasks,
            cfg,
            job.answer_tokens,
            job.recipe.seed,
            r.here / "sampler.log",
            advance,
            ended,
            known,
            log.append,
            r.stop,
        )


def answers_to_held_out(r: Round, policy: Policy, ended: Ended) -> list[Observed]:
    """Scored by the base model too; none if no query is held out."""
    job, samples = r.job, r.job.recipe.evaluate.query_samples
    if not job.watched:
        return []
    with r.progress.stage(f"{_who(r)}: held-out queries", len(job.watched) * samples, "responses") as advance:
        return observe(
            policy.gguf,
            policy.settings(r.engine),
            (job.source.path, r.engine) if r.number else None,
            job.watched,
            samples,
            job.answer_tokens,
            job.recipe.seed,
            r.here / "sampler.log",
            advance,
            ended,
        )


def _who(r: Round) -> str:
    return f"round {r.number}" if r.number else "base model"
