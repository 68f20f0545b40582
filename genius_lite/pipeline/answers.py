"""What the policy of a round answers when it is evaluated: to the recipe's tasks, and to the held-out queries."""

from __future__ import annotations

from collections.abc import Callable

from genius_lite.evaluate.measure import Ended, EvalModel, answer_tasks, observe, responses_wanted
from genius_lite.evaluate.results import best_temperature, by_temperature, complaints, mean_score
from genius_lite.evaluate.signals import Observed
from genius_lite.evaluate.tasks import TokenizedTask
from genius_lite.pipeline.round import Policy, Round
from genius_lite.recipe import Evaluate
from genius_lite.records import FailedQuery
from genius_lite.results.evaluation import Answers, Cooled, Response
from genius_lite.rundir.lines import RecordLog


def answers_to_tasks(r: Round, policy: Policy, log: RecordLog[Answers], ended: Ended) -> list[Answers]:
    """All of them, those of an earlier, interrupted run included; each problem's go into the log once they are there.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    return _answers(r, policy, r.job.tasks, r.job.recipe.evaluate, r.job.temperature, log, ended)


def cooled(r: Round, policy: Policy, known: list[Response], log: Callable[[float], RecordLog[Answers]]) -> Cooled:
    """The base model at its best temperature: the recipe's, those of its sweep, or 0.

    Args:
        known: its responses at the recipe's temperature and at 0.
        log: where answers at a temperature go.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    cfg = r.job.recipe.evaluate.model_copy(update={"greedy": False})

    def at(temperature: float, tasks: list[TokenizedTask]) -> list[Response]:
        file = log(temperature)
        answers = _answers(r, policy, tasks, cfg, temperature, file, lambda stats: None)
        file.close()
        return [response for one in answers for response in one.responses]

    tried = by_temperature(known, "choose")
    for temperature in r.job.recipe.evaluate.sweep if cfg.samples else []:
        if temperature != r.job.temperature:
            tried |= by_temperature(at(temperature, [task.choosing() for task in r.job.tasks]), "choose")
    best, reported = best_temperature(tried), by_temperature(known, "report")
    if best not in reported:
        reported = by_temperature(at(best, r.job.tasks), "report")
    return Cooled(best, {f"{t:g}": mean_score(of) or 0.0 for t, of in sorted(tried.items())}, reported.get(best, {}))


def _answers(
    r: Round,
    policy: Policy,
    tasks: list[TokenizedTask],
    cfg: Evaluate,
    temperature: float,
    log: RecordLog[Answers],
    ended: Ended,
) -> list[Answers]:
    tasks = [task for task in tasks if task.questions]
    if not tasks:
        return []
    done, what = sum(len(answers.responses) for answers in log.records), "" if cfg.greedy else f" at {temperature:g}"
    with r.progress.stage(f"{_who(r)}: tasks{what}", responses_wanted(tasks, cfg), "responses", done=done) as advance:
        found = answer_tasks(_respondent(r, policy), tasks, cfg, temperature, advance, ended, log, r.stop)
    for line in complaints(found):
        r.progress.say(f"warning: {line}")
    return found


def answers_to_held_out(r: Round, policy: Policy, ended: Ended) -> tuple[list[Observed], list[FailedQuery]]:
    """Scored by the base model too; none if no query is held out. What llama.cpp does not survive is set aside."""
    job, samples = r.job, r.job.recipe.evaluate.query_samples
    if not job.watched:
        return [], []
    with r.progress.stage(f"{_who(r)}: held-out queries", len(job.watched) * samples, "responses") as advance:
        base = _respondent(r, r.baseline) if r.number else None
        seen, failures = observe(_respondent(r, policy), base, job.watched, samples, advance, ended)
    for one in failures:
        r.progress.say(f"warning: held-out query {one.query_id} failed: {one.reason}")
    return seen, failures


def _respondent(r: Round, policy: Policy) -> EvalModel:
    settings = policy.settings(r.engine)
    return EvalModel(policy.gguf, settings, r.job.recipe.answer_tokens, r.job.recipe.seed, r.here / "sampler.log")


def _who(r: Round) -> str:
    return f"round {r.number}" if r.number else "base model"
