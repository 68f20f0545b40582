"""The evaluation of a policy: its answers to the recipe's tasks and to the held-out queries, and what they show."""

from __future__ import annotations

import time
from pathlib import Path

from genius_lite.errors import Stopped
from genius_lite.evaluate.measure import Ended, EvalModel, answer_tasks, observe, responses_wanted
from genius_lite.evaluate.record import Evaluation, read_evaluation, write_evaluation
from genius_lite.evaluate.results import best_temperature, by_temperature, complaints, mean_score
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.evaluate.tasks import TokenizedTask
from genius_lite.pipeline.round import Policy, Round, note_time
from genius_lite.progress import Stage
from genius_lite.recipe import Evaluate
from genius_lite.records import FailedQuery
from genius_lite.results.evaluation import Answers, Cooled, Response
from genius_lite.results.rounds import Stats, total_stats
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.lines import RecordLog
from genius_lite.rundir.reader import RoundFolder


def evaluate(r: Round, policy: Policy) -> Evaluation:
    """Let the policy answer the tasks and the held-out queries, beside the base model's answers.

    In round 0 it is the base model: the user's own file, or `baseline`, which is kept apart where it is another file.
    Answers to the tasks that an earlier, interrupted run has are kept.

    Raises:
        Stopped: the run was asked to stop.
    """
    here = r.folder_of(policy)
    if r.number or not (here / folder.EVALUATION).exists():  # every round asks for the base's, which is there by then
        r.enter(Stage.EVALUATE)
    start, ended = time.monotonic(), list[Stats]()

    def make(out: Path) -> None:
        out.mkdir()
        log = RecordLog(here / folder.ANSWERS, Answers)
        known = len(log.records)

        def note() -> None:
            tokens = sum(response.tokens for answers in log.records[known:] for response in answers.responses)
            note_time(here, Stage.EVALUATE, time.monotonic() - start, tokens, total_stats(ended))

        try:
            answers = _answers(r, policy, r.job.tasks, r.job.recipe.evaluate, r.job.temperature, log, ended.append)
        except Stopped:
            note()
            raise
        log.close()
        seen, failures = _observe(r, policy, ended.append)
        write_evaluation(out, answers, signals(seen) if seen else None, failures)
        note()

    here.build(folder.EVALUATION, make)
    remove(here / folder.ANSWERS)
    base = r.folder.base if r.number else None
    return read_evaluation(RoundFolder(r.number, here.path), base, r.job.recipe.rounds)


def cool(r: Round, policy: Policy) -> Cooled | None:
    """Find what the base model, which was evaluated, does at its best temperature: the recipe's, its sweep's, or 0.

    None where no problem chooses, or none reports: there is no task, or none that llama.cpp survives.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    cfg, here = r.job.recipe.evaluate.model_copy(update={"greedy": False}), r.folder_of(policy)
    known = r.folder.base.responses  # at the recipe's temperature and at 0
    tried, reported = by_temperature(known, "choose"), by_temperature(known, "report")
    if not tried or not reported:
        return None

    def at(temperature: float, tasks: list[TokenizedTask]) -> list[Response]:
        log = RecordLog(here / f"cooling-{temperature:g}.jsonl", Answers)
        answers = _answers(r, policy, tasks, cfg, temperature, log, lambda stats: None)
        log.close()
        return [response for one in answers for response in one.responses]

    def sweep() -> Cooled:
        every = dict(tried)
        for temperature in cfg.sweep if cfg.samples else []:
            if temperature != r.job.temperature:
                answered = at(temperature, [task.choosing() for task in r.job.tasks])
                every |= by_temperature(answered, "choose")
        best = best_temperature(every)
        of_best = reported if best in reported else by_temperature(at(best, r.job.tasks), "report")
        means = {f"{t:g}": mean_score(scores) or 0.0 for t, scores in sorted(every.items())}
        return Cooled(best, means, of_best.get(best, {}))

    found: Cooled = here.build_json(folder.COOLED, sweep, Cooled)
    for temperature in cfg.sweep:
        remove(here / f"cooling-{temperature:g}.jsonl")
    return found


def _answers(
    r: Round,
    policy: Policy,
    tasks: list[TokenizedTask],
    cfg: Evaluate,
    temperature: float,
    log: RecordLog[Answers],
    ended: Ended,
) -> list[Answers]:
    """Answer tasks, but for what an earlier, interrupted run answered; each problem's answers go into the log."""
    tasks = [task for task in tasks if task.questions]
    if not tasks:
        return []
    done, what = sum(len(answers.responses) for answers in log.records), "" if cfg.greedy else f" at {temperature:g}"
    with r.progress.stage(f"{_who(r)}: tasks{what}", responses_wanted(tasks, cfg), "responses", done=done) as advance:
        found = answer_tasks(_respondent(r, policy), tasks, cfg, temperature, advance, ended, log, r.stop)
    for line in complaints(found):
        r.progress.say(f"warning: {line}")
    return found


def _observe(r: Round, policy: Policy, ended: Ended) -> tuple[list[Observed], list[FailedQuery]]:
    """Answer held-out queries, scored by the base model too. What llama.cpp does not survive is set aside."""
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
    recipe, settings = r.job.recipe, policy.settings(r.engine)
    return EvalModel(policy.gguf, settings, recipe.answer_tokens, recipe.seed, r.sampler_log, r.progress.say)


def _who(r: Round) -> str:
    return f"round {r.number}" if r.number else "base model"
