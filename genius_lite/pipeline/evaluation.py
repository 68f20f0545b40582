"""The evaluation of a policy: its answers to the recipe's tasks and to the held-out queries, and what they show."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from genius_lite.evaluate.held_out import observe
from genius_lite.evaluate.measure import EvalModel, Sampled, answer_tasks
from genius_lite.evaluate.record import Evaluation, read_evaluation, write_evaluation
from genius_lite.evaluate.remembered import Inquiry
from genius_lite.evaluate.results import best_temperature, by_temperature, complaints, mean_score
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.evaluate.tasks import TokenizedTask
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.round import Policy, Round, note_time, note_untimed
from genius_lite.pipeline.trust import trust_evaluation
from genius_lite.progress import Stage, named
from genius_lite.records import FailedQuery, Query
from genius_lite.results.evaluation import Answers, Cooled, Response, Said
from genius_lite.results.rounds import SWEPT, total_stats
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.lines import Lines, RecordLog
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler.messages import EngineSettings


@dataclass(frozen=True)
class BaseResult:
    """The base model in the types of the rounds: its evaluation, and what it does at its best temperature."""

    evaluation: Evaluation
    cooled: Cooled | None


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
        there = sum(response.tokens for one in Lines(file, Answers) for response in one.responses)
        there += sum(len(said.tokens) for one in Lines(here / folder.SAID, Said) for said in one.responses)
        note_untimed(here, Stage.EVALUATE, there)
        greedy = r.job.recipe.evaluate.greedy
        answers = _answers(r, policy, r.job.tasks, r.job.temperature, greedy, file, "tasks")
        seen, failures = _observe(r, policy)
        write_evaluation(out, answers, signals(seen) if seen else None, failures)

    here.build(folder.EVALUATION, make)
    for log in (folder.ANSWERS, folder.SAID):
        remove(here / log)
    made = RoundFolder(r.number, here.path)
    if not (r.here / folder.REPORT).exists():  # once there is one, what was counted stays
        trust_evaluation(r, made)
    return read_evaluation(made, r.folder.base if r.number else None, r.job.recipe.rounds)


def cool(r: Round, policy: Policy) -> Cooled | None:
    """Find what the base model, which was evaluated, does at its best temperature: the recipe's, its sweep's, or 0.

    None where no problem chooses, or none reports: there is no task, or none that llama.cpp survives.

    Raises:
        Stopped: before that the run was asked to stop.
    """
    cfg, here = r.job.recipe.evaluate, r.folder_of(policy)
    known = r.folder.base.responses  # at the recipe's temperature and at 0
    tried, reported = by_temperature(known, "choose"), by_temperature(known, "report")
    if not tried or not reported:
        return None

    def at(temperature: float, tasks: list[TokenizedTask]) -> list[Response]:
        file = here / folder.COOLING.format(temperature)
        answers = _answers(r, policy, tasks, temperature, False, file, SWEPT)
        return [response for one in answers for response in one.responses]

    def sweep() -> Cooled:
        every = dict(tried)
        if cfg.samples and cfg.sweep:
            r.enter(Stage.EVALUATE)
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
        remove(here / folder.COOLING.format(temperature))
    return found


def _answers(
    r: Round, policy: Policy, tasks: list[TokenizedTask], temperature: float, greedy: bool, file: Path, part: str
) -> list[Answers]:
    """Answer tasks, but for what an earlier, interrupted run answered, or any earlier run of the same base model.

    Args:
        greedy: also by the likeliest response.
        file: each problem's answers go there.
        part: of the stage, which the time is noted for.
    """
    questions = {item.task.name: item.questions for item in tasks if item.questions}
    if not questions:
        return []
    who, log = _respondent(r, policy, r.job.recipe.evaluate.samples, temperature, greedy), RecordLog(file, Answers)
    name = f"{named(r.number)}: tasks" + ("" if greedy else f" at {temperature:g}")
    wanted, done = who.responses * sum(map(len, questions.values())), sum(len(one.responses) for one in log.records)
    stage = r.progress.stage(name, wanted, "responses", done=done, at_once=who.settings.slots)
    with _noted(r, policy, who, questions, log, part) as known, stage as advance:
        found = answer_tasks(who, tasks, advance, log, known)
    for line in complaints(found):
        r.progress.say(f"warning: {line}")
    return found


def _observe(r: Round, policy: Policy) -> tuple[list[Observed], list[FailedQuery]]:
    """Answer held-out queries, scored by the base model too. What llama.cpp does not survive is set aside."""
    watched, recipe, samples = r.job.watched, r.job.recipe, r.job.recipe.evaluate.query_samples
    if not watched:
        return [], []
    who, log = _respondent(r, policy, samples), RecordLog(r.folder_of(policy) / folder.SAID, Said)
    base = _respondent(r, r.baseline, samples) if r.number else None
    name, at_once = f"{named(r.number)}: held-out queries", who.settings.slots
    stage = r.progress.stage(name, len(watched) * samples, "responses", at_once=at_once)
    with _noted(r, policy, who, {"": watched}, log, "held-out queries") as known, stage as advance:
        seen, failures = observe(who, base, watched, recipe.queries.answers, advance, log, known)
    for one in failures:
        r.progress.say(f"warning: held-out query {one.query_id} failed: {one.reason}")
    return seen, failures


@contextmanager
def _noted(
    r: Round,
    policy: Policy,
    who: EvalModel,
    questions: Mapping[str, Sequence[Query]],
    log: RecordLog[Answers] | RecordLog[Said],
    part: str,
) -> Iterator[Sampled]:
    """Give what earlier runs have left of the responses to questions, by task; the block adds what it samples.

    The time is noted then, and the responses of the user's own file are remembered (no later run has another one
    again), also of a block that is interrupted: they are not asked for again.

    Args:
        log: of this run's own answers; it is closed.
        part: of the stage, which the time is noted for.
    """
    start, before, recalled = time.monotonic(), {one.key for one in log.records}, Sampled()
    own = r.job.recipe.evaluate.remember and not r.number and policy == r.own
    inquiries = [Inquiry(who, r.job.source, *each) for each in questions.items()] if own else []
    for asked in inquiries:
        found = asked.recall()
        if found.keys() - before:
            whose = "its" if asked.is_answered(found) else f"{len(found)} of its {len(asked.queries)}"
            r.progress.say(
                f"base model: {whose} answers to {asked.task or 'held-out queries'} are those of an earlier run here "
                "(evaluate.remember: false asks again)"
            )
        recalled |= found
    sampled, whole = dict(recalled), False
    try:
        yield sampled
        whole = True
    finally:
        seconds, new = time.monotonic() - start, sampled.keys() - recalled.keys()
        made, known = (
            sum(len(one.tokens) for key in keys - before for one in sampled[key]) for keys in (new, recalled.keys())
        )
        here, stats = r.folder_of(policy), total_stats(who.totals)
        note_time(here, Stage.EVALUATE, seconds, made, stats, {part: seconds}, untimed=known if whole else 0.0)
        for asked in inquiries:
            if any(task == asked.task for task, _ in new):
                asked.remember(sampled, seconds)
        log.close()


def remembered(job: Job, engine: EngineSettings) -> set[str]:
    """Name the tasks whose answers by the user's own file an earlier run has left; held-out queries have no name."""
    cfg = job.recipe.evaluate
    if not cfg.remember:
        return set()
    watching = EvalModel(job.source.path, engine, job.recipe.answer_tokens, job.recipe.seed, cfg.query_samples)
    who = replace(watching, samples=cfg.samples, temperature=job.temperature, greedy=cfg.greedy)
    inquiries = [Inquiry(who, job.source, item.task.name, item.questions) for item in job.tasks]
    inquiries.append(Inquiry(watching, job.source, "", job.watched))
    return {one.task for one in inquiries if one.queries and one.is_answered(one.recall())}


def _respondent(r: Round, policy: Policy, samples: int, temperature: float = 1.0, greedy: bool = False) -> EvalModel:
    way = (r.job.recipe.answer_tokens, r.job.recipe.seed, samples, temperature, greedy)
    return EvalModel(policy.gguf, policy.settings(r.engine), *way, r.sampler_log, r.progress.say, r.stop)
