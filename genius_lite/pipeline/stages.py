"""The stages of a round, in order. Each is built once in the run folder; what is there already is not built again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stopped, UserError
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.cooling import shares
from genius_lite.evaluate.record import Evaluation, read_evaluation, read_own, write_evaluation
from genius_lite.evaluate.signals import signals
from genius_lite.foresight.pairs import preference_pairs
from genius_lite.hardware import Precision, give_memory_back, learner_device, learner_precision
from genius_lite.pipeline.answers import answers_to_held_out, answers_to_tasks, cooled
from genius_lite.pipeline.backends import search
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.policies import baseline, next_policy, to_sample
from genius_lite.pipeline.round import Policy, Round, Session, note_time
from genius_lite.progress import Progress, Stage
from genius_lite.records import FailedQuery, PreferencePair, Rollout
from genius_lite.results.evaluation import Answers, Cooled
from genius_lite.rundir.folder import (
    ADAPTER,
    ANSWERS,
    CHECKPOINT,
    COOLED,
    EVALUATION,
    FAILED_FILE,
    IMPORTANCE,
    LEFT_OUT,
    PAIRS,
    ROLLOUTS,
    TRAINED,
    RunDir,
    remove,
    write_json,
)
from genius_lite.rundir.lines import RecordLog
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler.messages import Stats
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import BASE_FILE, IMATRIX_FILE, write_imatrix
from genius_lite.weights.full_precision import write_full_precision
from genius_lite.weights.importing import FULL_PRECISION, Base, import_checkpoint
from genius_lite.weights.quantize import quantized_bytes

__all__ = ["evaluate", "evaluate_base", "import_base", "next_policy", "pair", "sample", "to_sample", "train"]

COMPARED = 8  # rollouts that learner and sampler both score


def import_base(job: Job, folder: RunDir, progress: Progress) -> Base:
    """The learner's copy of the model: of the GGUF itself, or of full-precision weights in its place."""

    def full_precision(weights: Path, out: Path) -> None:
        out.mkdir()
        with progress.stage("full precision", quantized_bytes(job.source, "F16"), "MB", 1e-6) as advance:
            write_full_precision(job.source, weights, out / job.source.path.name, advance)

    def hf_checkpoint(out: Path) -> None:
        matrices, start = sum(len(t.shape) == 2 for t in source.tensors), time.monotonic()
        with progress.stage("import", matrices, "matrices") as advance:
            import_checkpoint(source, out, advance, job.recipe.model.weights or job.recipe.model.gguf)
        give_memory_back()
        note_time(folder, Stage.IMPORT, time.monotonic() - start, matrices)

    source, weights = job.source, job.weights
    if weights:
        made = folder.build(FULL_PRECISION, lambda out: full_precision(weights, out))
        source = gguf_file.read(made / source.path.name)
    base = Base(source, folder.build(CHECKPOINT, hf_checkpoint))
    base.check()  # which notes where the file lies now
    return base


def sample(r: Round, policy: Policy) -> Sequence[Rollout]:
    """The round's rollouts, in the order of the queries; those of an earlier, interrupted run are kept.

    They are read from their file whenever they are asked for: those of many queries fit into no memory.

    Queries whose search the sampler does not survive are set aside: `failed.jsonl` has them with the reason.

    Raises:
        UserError: no query is left.
        Stopped: the run was asked to stop.
    """
    r.enter(Stage.ROLLOUTS)
    queries, log = r.job.searched, RecordLog(r.here / ROLLOUTS, Rollout)
    failures = RecordLog(r.here / FAILED_FILE, FailedQuery)
    over = {*log.records.query_ids(), *failures.records.query_ids()}
    if missing := [q for q in queries if q.id not in over]:
        r.progress.searched_before(log.records)
        start, before = time.monotonic(), len(log.records)
        with r.progress.stage(f"round {r.number}: rollouts", len(queries), "queries", done=len(over)) as advance:
            memory = asyncio.run(search(r, policy, missing, log, failures, advance))
            tokens = sum(rollout.sampled_tokens for rollout in log.records[before:])
            note_time(r.here, Stage.ROLLOUTS, time.monotonic() - start, tokens, memory)
            if len(log.records) + len(failures.records) < len(queries):
                raise Stopped
    log.close()
    failures.close()
    place = {query: number for number, query in enumerate(log.records.query_ids())}
    if not place:
        raise UserError(f"round {r.number}: the sampler survived no query; {r.here / 'sampler.log'} has its last words")
    return log.records.pick(place[q.id] for q in queries if q.id in place)


def pair(r: Round, rollouts: Sequence[Rollout]) -> list[PreferencePair]:
    """The pairs to learn from; `filtered.json` counts the steps that each of the recipe's filters left without one.

    Raises:
        UserError: none is left.
    """
    r.enter(Stage.PAIRS)
    cfg, tau = r.job.recipe.pairs, r.job.recipe.foresight.tau

    def make() -> list[PreferencePair]:
        with Vocabulary.open(r.job.source.path) as vocabulary:
            kept, left_out = preference_pairs(rollouts, cfg, tau, r.key, lambda t: extract_answer(vocabulary.decode(t)))
        write_json(r.here / LEFT_OUT, left_out)
        if not kept:
            counted = ", ".join(f"{name} {count}" for name, count in left_out.items() if count)
            cause = "no query gave two different responses; raise foresight.temperature or candidates"
            if counted:
                cause = f"the filters of `pairs` left none ({counted}); loosen them"
            raise UserError(f"round {r.number}: no pair to learn from: {cause}")
        return kept

    return r.here.build_records(PAIRS, make, PreferencePair)


def train(r: Round, start: Path | None, rollouts: Sequence[Rollout], pairs: list[PreferencePair]) -> Path:
    """The cumulative adapter, with the base's hash, the importance matrix and the training's figures beside it."""
    # torch takes seconds to import; nothing before this stage needs it.
    from genius_lite.learner.logprob_mismatch import Sample
    from genius_lite.learner.train import Training, passes, train_adapter
    from genius_lite.learner.worker_loop import with_workers

    r.enter(Stage.TRAIN)

    def make(out: Path) -> None:
        cfg, began, device = r.job.recipe.learner, time.monotonic(), learner_device()
        work, sixteen = r.here.sub("training"), quantized_bytes(r.job.source, "F16") * r.group.local_world_size
        # A run that goes on elsewhere, or beside other programs, must not choose again.
        precision: Precision = work.build_json(
            "precision.json", lambda: learner_precision(cfg.precision, device, sixteen)
        )
        compared = rollouts[:: max(1, len(rollouts) // COMPARED)][:COMPARED]
        samples = [Sample(c.query.tokens, c.response(0, 0), c.logprobs(0, 0)) for c in compared]
        training = Training(
            r.base.hf_checkpoint,
            start,
            pairs,
            samples,
            cfg,
            device,
            precision,
            r.key,
            work,
            own_weights=r.job.weights is None,
        )
        total, done = passes(training)
        stage = r.progress.stage(f"round {r.number}: train ({precision})", total, "passes", done=done)
        with stage as advance, with_workers(r.group, training):
            report = train_adapter(training, out, advance, r.progress.say, r.tracker.update, r.stop, r.group)
        write_imatrix(out / IMPORTANCE, r.base.tensor_map, f"{len(pairs)} preference pairs", out / IMATRIX_FILE)
        remove(out / IMPORTANCE)
        write_json(out / BASE_FILE, {"sha256": r.base.sha256})
        give_memory_back()
        seconds = time.monotonic() - began
        write_json(out / TRAINED, msgspec.structs.replace(report, seconds=seconds))
        note_time(r.here, Stage.TRAIN, seconds, total)

    adapter = r.here.build(ADAPTER, make)
    remove(r.here / "training")
    return adapter


def evaluate(r: Round, policy: Policy) -> Evaluation:
    """Let the policy answer the tasks and the held-out queries, beside the base model's answers.

    In round 0 it is the base model: the user's own file, or `baseline`, which is kept apart where it is another file.
    Answers to the tasks that an earlier, interrupted run has are kept.

    Raises:
        Stopped: the run was asked to stop.
    """
    here = r.folder_of(policy)
    if r.number or not (here / EVALUATION).exists():  # every round asks for the base's, which is there by then
        r.enter(Stage.EVALUATE)
    start, ended = time.monotonic(), list[Stats]()

    def make(out: Path) -> None:
        out.mkdir()
        log = RecordLog(here / ANSWERS, Answers)
        known = len(log.records)

        def note() -> None:
            tokens = sum(response.tokens for answers in log.records[known:] for response in answers.responses)
            peak = max((stats.peak for stats in ended), default=None)
            note_time(here, Stage.EVALUATE, time.monotonic() - start, tokens, peak)

        try:
            answers = answers_to_tasks(r, policy, log, ended.append)
        except Stopped:
            note()
            raise
        log.close()
        seen, failures = answers_to_held_out(r, policy, ended.append)
        write_evaluation(out, answers, signals(seen) if seen else None, failures)
        note()

    here.build(EVALUATION, make)
    remove(here / ANSWERS)
    return read_evaluation(r.folder, r.number, r.job.recipe.rounds) if r.number else read_own(RoundFolder(0, here.path))


@dataclass(frozen=True)
class BaseResult:
    """The base model in the types of the rounds: its evaluation, and what it does at its best temperature."""

    evaluation: Evaluation
    cooled: Cooled | None


def evaluate_base(r: Session, adapter: Path) -> BaseResult:
    """Evaluate what rounds are told against: the base model, rounded as `next_policy` rounds; once a run.

    Raises:
        Stopped: the run was asked to stop.
    """
    base, start = baseline(r, adapter), r.round(0)
    return BaseResult(evaluate(start, base), cool(start, base))


def cool(start: Round, policy: Policy) -> Cooled | None:
    """The base model, which was evaluated, at the best temperature of the recipe's sweep; None without a problem.

    Raises:
        Stopped: the run was asked to stop.
    """
    here = start.folder_of(policy)

    def log(temperature: float) -> RecordLog[Answers]:
        return RecordLog(here / f"cooling-{temperature:g}.jsonl", Answers)

    known = start.folder.base.responses
    if not shares(known, choosing=True) or not shares(known, choosing=False):
        return None  # no task, or none that llama.cpp survives
    found = here.build_json(COOLED, lambda: cooled(start, policy, known, log))
    for temperature in start.job.recipe.evaluate.sweep:
        remove(here / f"cooling-{temperature:g}.jsonl")
    return msgspec.convert(found, Cooled)
