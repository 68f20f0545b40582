"""The stages of a round, in order. Each is built once in the run folder; what is there already is not built again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from genius_lite.answering import answers_to_held_out, answers_to_tasks
from genius_lite.bench import file_speed
from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.record import ANSWERS, Evaluation, read_evaluation, write_evaluation
from genius_lite.evaluate.results import Answers
from genius_lite.evaluate.signals import signals
from genius_lite.foresight.pairs import preference_pairs
from genius_lite.hardware import Precision, give_memory_back, learner_device, learner_precision
from genius_lite.job import Job
from genius_lite.prompts import Vocabulary
from genius_lite.records import PreferencePair, Rollout, SetAside
from genius_lite.report.progress import Progressor
from genius_lite.report.summary import retained_lines
from genius_lite.round import Policy, Round, note_time
from genius_lite.rundir import IMPORTANCE_FILE, SET_ASIDE, RecordLog, RunDir, remove, write_json
from genius_lite.sampler.messages import Stats
from genius_lite.searching import search
from genius_lite.stopping import Stopped
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.full_precision import write_full_precision
from genius_lite.weights.hot import Speeds
from genius_lite.weights.imatrix import IMATRIX_FILE
from genius_lite.weights.importing import Base, import_master
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import BASE_FILE, merged_bytes
from genius_lite.weights.policy import measured_bytes, measured_policy

_COMPARED = 8  # rollouts that learner and sampler both score
_PROBED = 16  # pairs, held back and learned from, that show what a quantized file keeps


def import_base(job: Job, folder: RunDir, progress: Progressor) -> Base:
    """The learner's copy of the model: of the GGUF itself, or of full-precision weights in its place."""

    def full_precision(weights: Path, out: Path) -> None:
        out.mkdir()
        with progress.stage("full precision", merged_bytes(job.source), "MB", 1e-6) as advance:
            write_full_precision(job.source, weights, out / job.source.path.name, advance)

    def master(out: Path) -> None:
        matrices, start = sum(len(t.shape) == 2 for t in source.tensors), time.monotonic()
        with progress.stage("import", matrices, "matrices") as advance:
            import_master(source, out, advance, job.recipe.model.weights or job.recipe.model.gguf)
        give_memory_back()
        note_time(folder, "import", time.monotonic() - start, matrices)

    source, weights = job.source, job.weights
    if weights:
        made = folder.build("full-precision", lambda out: full_precision(weights, out))
        source = gguf_file.read(made / source.path.name)
    return Base(source, folder.build("master", master))


def sample(r: Round, policy: Policy) -> Sequence[Rollout]:
    """The round's rollouts, in the order of the queries; those of an earlier, interrupted run are kept.

    They are read from their file whenever they are asked for: those of many queries fit into no memory.

    Queries whose search the sampler does not survive are set aside: `set-aside.jsonl` has them with the reason.

    Raises:
        UserError: no query is left.
        Stopped: the run was asked to stop.
    """
    r.enter("rollouts")
    queries, log = r.job.queries, RecordLog(r.here / "rollouts.jsonl", Rollout)
    aside = RecordLog(r.here / SET_ASIDE, SetAside)
    over = {*log.records.query_ids(), *aside.records.query_ids()}
    if missing := [q for q in queries if q.id not in over]:
        r.progress.searched_before(log.records)
        start, before = time.monotonic(), len(log.records)
        with r.progress.stage(f"round {r.number}: rollouts", len(queries), "queries", done=len(over)) as advance:
            memory = asyncio.run(search(r, policy, missing, log, aside, advance))
            tokens = sum(rollout.sampled_tokens for rollout in log.records[before:])
            note_time(r.here, "rollouts", time.monotonic() - start, tokens, memory)
            if len(log.records) + len(aside.records) < len(queries):
                raise Stopped
    log.close()
    aside.close()
    place = {query: number for number, query in enumerate(log.records.query_ids())}
    if not place:
        raise UserError(f"round {r.number}: the sampler survived no query; {r.here / 'sampler.log'} has its last words")
    return log.records.pick(place[q.id] for q in queries if q.id in place)


def pair(r: Round, rollouts: Sequence[Rollout]) -> list[PreferencePair]:
    """The pairs to learn from; `filtered.json` counts the steps that each of the recipe's filters left without one.

    Raises:
        UserError: none is left.
    """
    r.enter("pairs")
    cfg, tau = r.job.recipe.pairs, r.job.recipe.foresight.tau

    def make() -> list[PreferencePair]:
        with Vocabulary.open(r.job.source.path) as vocabulary:
            kept, left_out = preference_pairs(rollouts, cfg, tau, r.key, lambda t: extract_answer(vocabulary.decode(t)))
        write_json(r.here / "filtered.json", left_out)
        if not any(p.query_id not in r.job.held_out for p in kept):
            counted = ", ".join(f"{name} {count}" for name, count in left_out.items() if count)
            cause = "no query gave two different responses; raise foresight.temperature or candidates"
            if counted:
                cause = f"the filters of `pairs` left none ({counted}); loosen them"
            raise UserError(f"round {r.number}: no pair to learn from: {cause}")
        return kept

    return r.here.build_records("pairs.jsonl", make, PreferencePair)


def train(r: Round, start: Path | None, rollouts: Sequence[Rollout], pairs: list[PreferencePair]) -> Path:
    """The cumulative adapter, with the base's hash, the importance matrix and the training's figures beside it."""
    # torch takes seconds to import; nothing before this stage needs it.
    from genius_lite.learner.following import followed
    from genius_lite.learner.parity import Sample
    from genius_lite.learner.train import Training, passes, train_adapter

    r.enter("train")

    def make(out: Path) -> None:
        cfg, began, device = r.job.recipe.learner, time.monotonic(), learner_device()
        work, sixteen = r.here.sub("training"), merged_bytes(r.job.source) * r.team.beside
        # A run that goes on elsewhere, or beside other programs, must not choose again.
        precision: Precision = work.build_json(
            "precision.json", lambda: learner_precision(cfg.precision, device, sixteen)
        )
        compared = rollouts[:: max(1, len(rollouts) // _COMPARED)][:_COMPARED]
        samples = [Sample(c.query.tokens, c.response(0, 0), c.logprobs(0, 0)) for c in compared]
        training = Training(r.base.master, start, pairs, samples, cfg, device, precision, r.key, work)
        total, done = passes(training)
        stage = r.progress.stage(f"round {r.number}: train ({precision})", total, "passes", done=done)
        with stage as advance, followed(r.team, training):
            report = train_adapter(training, out, advance, r.progress.say, r.tracker.update, r.stop, r.team)
        imatrix.write(out / IMPORTANCE_FILE, r.base.tensor_map, f"{len(pairs)} preference pairs", out / IMATRIX_FILE)
        remove(out / IMPORTANCE_FILE)
        write_json(out / BASE_FILE, {"sha256": r.base.sha256})
        give_memory_back()
        seconds = time.monotonic() - began
        write_json(out / "train.json", {**report.as_dict(), "seconds": seconds})
        note_time(r.here, "train", seconds, total)

    adapter = r.here.build("adapter", make)
    remove(r.here / "training")
    return adapter


def next_policy(r: Round, adapter: Path, pairs: list[PreferencePair], tokens: int) -> Policy:
    """Base + adapter in one GGUF; or, where a round follows and the recipe says so, side by side.

    Where `quantize.type: auto` finds no type that keeps enough, the next round is sampled side by side too, which
    rounds nothing.

    Args:
        pairs: all of the round; some of them show what a quantized file keeps.
        tokens: that the next round is expected to sample.
    """
    r.enter("merge")
    mode = r.job.recipe.policy
    held_back = [p for p in pairs if p.query_id in r.job.held_out]
    learned = [p for p in pairs if p.query_id not in r.job.held_out]
    shown = held_back[:_PROBED] + learned[:_PROBED]
    beside = Policy(r.job.source.path, adapter, r.here / "adapter.gguf")

    def apply() -> Policy:
        r.here.build("adapter.gguf", lambda out: write_lora(r.base, adapter, out))
        return beside

    if mode == "adapter" and not r.last:
        return apply()
    if mode == "auto" and not r.last and r.number > 1:
        speeds = Speeds(**json.loads((r.here.path.parent / "round-1" / "speeds.json").read_text()))
        if speeds.favour_adapter(tokens, merged=False):
            return apply()
    merged = Policy(_requantize(r, adapter, shown), adapter)
    if r.last:
        return merged
    if r.job.recipe.quantize.type == "auto" and not json.loads((r.here / "quantized.json").read_text())["keeps"]:
        return apply()
    if mode == "auto" and r.number == 1:  # both ways are measured
        apply()
        return beside if _speeds(r, merged, beside).favour_adapter(tokens, merged=True) else merged
    return merged


def _requantize(r: Round, adapter: Path, shown: list[PreferencePair]) -> Path:
    cfg, start = r.job.recipe.quantize, time.monotonic()
    total = measured_bytes(r.job.source, cfg)

    def make(out: Path) -> None:
        log, sampled = r.here / "sampler.log", r.job.source.path
        with r.progress.stage(f"round {r.number}: {cfg.type}", total, "MB", 1e-6) as advance:
            rate = partial(file_speed, settings=r.engine)
            found = measured_policy(r.base, adapter, cfg, shown, r.engine, sampled, rate, out, log, advance)
        give_memory_back()
        seconds = time.monotonic() - start
        write_json(r.here / "quantized.json", {**found, "seconds": seconds})
        note_time(r.here, "quantize", seconds, total)
        for line in retained_lines(found, cfg.keep):
            r.progress.say(line)

    return r.here.build("policy.gguf", make)


def _speeds(r: Round, merged: Policy, beside: Policy) -> Speeds:
    def measure() -> dict[str, float]:
        seconds = json.loads((r.here / "quantized.json").read_text())["seconds"]
        rates = (file_speed(p.gguf, p.settings(r.engine)) for p in (merged, beside))
        speeds = Speeds(seconds, *rates)
        r.progress.say(speeds.line())
        return asdict(speeds)

    return Speeds(**r.here.build_json("speeds.json", measure))


def evaluate(r: Round, policy: Policy) -> Evaluation:
    """Let the policy answer the tasks and the held-out queries, beside the base model's answers of round 0.

    Answers to the tasks that an earlier, interrupted run has are kept.

    Raises:
        Stopped: the run was asked to stop.
    """
    r.enter("evaluate")
    start, ended = time.monotonic(), list[Stats]()

    def make(out: Path) -> None:
        out.mkdir()
        log = RecordLog(r.here / ANSWERS, Answers)
        known = len(log.records)

        def note() -> None:
            tokens = sum(response.tokens for answers in log.records[known:] for response in answers.responses)
            peak = max((stats.peak for stats in ended), default=None)
            note_time(r.here, "evaluation", time.monotonic() - start, tokens, peak)

        try:
            responses = answers_to_tasks(r, policy, log, ended.append)
        except Stopped:
            note()
            raise
        log.close()
        seen = answers_to_held_out(r, policy, ended.append)
        write_evaluation(out, responses, signals(seen) if seen else None)
        note()

    r.here.build("evaluation", make)
    remove(r.here / ANSWERS)
    return read_evaluation(r.here.path.parent, r.number)
