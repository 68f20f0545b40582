"""The evaluation of a policy: its answers to the recipe's tasks and to the held-out queries, and what they show."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from genius_lite.evaluate.held_out import observe
from genius_lite.evaluate.measure import UNFILTERED, EvalModel, answer_tasks, responses_wanted, ways_asked
from genius_lite.evaluate.record import Evaluation, read_evaluation, write_evaluation
from genius_lite.evaluate.remembered import WORTH, Inquiry
from genius_lite.evaluate.results import best_temperature, by_temperature, complaints, mean_score
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.evaluate.tasks import TokenizedTask
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.round import Policy, Round, note_time
from genius_lite.progress import Stage, named
from genius_lite.recipe import Evaluate
from genius_lite.records import Completion, FailedQuery, Query
from genius_lite.results.evaluation import Answers, Cooled, Response, Said
from genius_lite.results.rounds import Stats, total_stats
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.lines import RecordLog
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler.messages import EngineSettings, Sampling


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

    def make(out: Path) -> None:
        out.mkdir()
        file = here / folder.ANSWERS
        answers = _answers(r, policy, r.job.tasks, r.job.recipe.evaluate, r.job.temperature, file, "tasks")
        seen, failures = _observe(r, policy)
        write_evaluation(out, answers, signals(seen) if seen else None, failures)

    here.build(folder.EVALUATION, make)
    for log in (folder.ANSWERS, folder.SAID):
        remove(here / log)
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
        file = here / f"cooling-{temperature:g}.jsonl"
        answers = _answers(r, policy, tasks, cfg, temperature, file, "other temperatures")
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
    r: Round, policy: Policy, tasks: list[TokenizedTask], cfg: Evaluate, temperature: float, file: Path, part: str
) -> list[Answers]:
    """Answer tasks, but for what an earlier, interrupted run answered, or any earlier run of the same base model.

    Args:
        file: each problem's answers go there.
        part: of the stage, which the time is noted for.
    """
    tasks, start, ended = [task for task in tasks if task.questions], time.monotonic(), list[Stats]()
    if not tasks:
        return []
    log, ways = RecordLog(file, Answers), ways_asked(cfg, temperature)
    before, begun = {(one.task, one.problem) for one in log.records}, len(log.records)
    asked = [_inquiry(r.job, r.engine, item.task.name, item.questions, ways) for item in tasks if _is_own(r, policy)]
    recalled = [_recall(r, one, {problem for task, problem in before if task == one.name}) for one in asked]
    said = {
        (one.name, query): found for one, each in zip(asked, recalled, strict=True) for query, found in each.items()
    }
    known = {*said}
    done, what = sum(len(answers.responses) for answers in log.records), "" if cfg.greedy else f" at {temperature:g}"
    stage = r.progress.stage(f"{named(r.number)}: tasks{what}", responses_wanted(tasks, cfg), "responses", done=done)
    try:
        with stage as advance:
            found = answer_tasks(
                _respondent(r, policy), tasks, cfg, temperature, advance, ended.append, log, r.stop, said
            )
    finally:  # also of what was interrupted: it is not asked again
        sampled = (one for one in log.records[begun:] if (one.task, one.problem) not in known)
        tokens, seconds = sum(each.tokens for one in sampled for each in one.responses), time.monotonic() - start
        note_time(r.folder_of(policy), Stage.EVALUATE, seconds, tokens, total_stats(ended), {part: seconds})
        for one, earlier in zip(asked, recalled, strict=True):
            own = {query: each for (task, query), each in said.items() if task == one.name}
            _remember(one, earlier, own, seconds)
        log.close()
    for line in complaints(found):
        r.progress.say(f"warning: {line}")
    return found


def _observe(r: Round, policy: Policy) -> tuple[list[Observed], list[FailedQuery]]:
    """Answer held-out queries, scored by the base model too. What llama.cpp does not survive is set aside."""
    job, samples, start, ended = r.job, r.job.recipe.evaluate.query_samples, time.monotonic(), list[Stats]()
    if not job.watched:
        return [], []
    asked = _inquiry(job, r.engine, "", job.watched, [(samples, UNFILTERED)]) if _is_own(r, policy) else None
    log = RecordLog(r.folder_of(policy) / folder.SAID, Said)
    before = {one.query_id for one in log.records}
    recalled = _recall(r, asked, before) if asked else {}
    said, known = dict(recalled), recalled.keys() | before
    stage = r.progress.stage(f"{named(r.number)}: held-out queries", len(job.watched) * samples, "responses")
    try:
        with stage as advance:
            base = _respondent(r, r.baseline) if r.number else None
            who, answers = _respondent(r, policy), job.recipe.queries.answers
            seen, failures = observe(who, base, job.watched, samples, advance, ended.append, log, r.stop, said, answers)
    finally:  # also of what was interrupted: it is not asked again
        seconds = time.monotonic() - start
        tokens = sum(len(one.tokens) for query, each in said.items() if query not in known for one in each)
        parts = {"held-out queries": seconds}
        note_time(r.folder_of(policy), Stage.EVALUATE, seconds, tokens, total_stats(ended), parts)
        if asked:
            _remember(asked, recalled, said, seconds)
        log.close()
    for one in failures:
        r.progress.say(f"warning: held-out query {one.query_id} failed: {one.reason}")
    return seen, failures


def remembered(job: Job, engine: EngineSettings) -> set[str]:
    """Name the tasks whose answers by the user's own file an earlier run has left; held-out queries have no name."""
    cfg, ways = job.recipe.evaluate, ways_asked(job.recipe.evaluate, job.temperature)
    each = [(item.task.name, item.questions, ways) for item in job.tasks]
    each.append(("", job.watched, [(cfg.query_samples, UNFILTERED)]))
    inquiries = [_inquiry(job, engine, *one) for one in each] if cfg.remember else []
    return {one.name for one in inquiries if one.queries and one.is_answered(one.recall())}


def _is_own(r: Round, policy: Policy) -> bool:
    """Whether it is the user's own file, and its answers are to be remembered: no later run has other models again."""
    return r.job.recipe.evaluate.remember and not r.number and policy == r.own


def _inquiry(
    job: Job, engine: EngineSettings, name: str, queries: Sequence[Query], sampling: Sequence[tuple[int, Sampling]]
) -> Inquiry:
    return Inquiry(job.source, engine, name, queries, sampling, job.recipe.answer_tokens, job.recipe.seed)


def _recall(r: Round, asked: Inquiry, before: Collection[str]) -> dict[str, list[Completion]]:
    """Return what earlier runs have left, and say so where this one does not have it itself, `before`."""
    found = asked.recall()
    if found.keys() - before:
        what = f"answers to {asked.name}" if asked.name else "answers to held-out queries"
        whose = "its" if asked.is_answered(found) else f"{len(found)} of its {len(asked.queries)}"
        r.progress.say(
            f"base model: {whose} {what} are those of an earlier run here (evaluate.remember: false asks again)"
        )
    return found


def _remember(asked: Inquiry, recalled: Collection[str], said: dict[str, list[Completion]], seconds: float) -> None:
    if len(said) > len(recalled) and (recalled or seconds >= WORTH):
        asked.remember(said)


def _respondent(r: Round, policy: Policy) -> EvalModel:
    recipe, settings = r.job.recipe, policy.settings(r.engine)
    return EvalModel(policy.gguf, settings, recipe.answer_tokens, recipe.seed, r.sampler_log, r.progress.say)
