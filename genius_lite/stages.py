"""The stages of a round, in order. Each is built once in the run folder; what is there already is not built again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from genius_lite.answering import answers_to_held_out, answers_to_tasks
from genius_lite.bench import file_speed
from genius_lite.errors import UserError
from genius_lite.evaluate.checkers import extract_answer
from genius_lite.evaluate.record import ANSWERS, Evaluation, read_evaluation, read_own, write_evaluation
from genius_lite.evaluate.results import Answers
from genius_lite.evaluate.signals import signals
from genius_lite.foresight.pairs import preference_pairs
from genius_lite.hardware import Precision, give_memory_back, learner_device, learner_precision
from genius_lite.job import Job
from genius_lite.prompts import Vocabulary
from genius_lite.recipe import QuantType, TargetType
from genius_lite.records import PreferencePair, Rollout, SetAside
from genius_lite.report.progress import Progressor
from genius_lite.report.summary import retained_lines
from genius_lite.round import Policy, Round, note_time
from genius_lite.rundir import BASELINE, IMPORTANCE_FILE, SET_ASIDE, RecordLog, RunDir, remove, write_json
from genius_lite.sampler.messages import Stats
from genius_lite.searching import search
from genius_lite.stopping import Stopped
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.full_precision import write_full_precision
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.imatrix import IMATRIX_FILE
from genius_lite.weights.importing import FULL_PRECISION, Base, import_master
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import BASE_FILE, Adapter, Kept, merge, merged_bytes, planned_types, round_base
from genius_lite.weights.quantize import type_name, types_bytes
from genius_lite.weights.retained import Scored, check, one_of_each

_COMPARED = 8  # rollouts that learner and sampler both score
KEEPING: tuple[QuantType, ...] = ("Q8_0", "F16")  # types for a last round whose own type lost what was learned


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
        made = folder.build(FULL_PRECISION, lambda out: full_precision(weights, out))
        source = gguf_file.read(made / source.path.name)
    base = Base(source, folder.build("master", master))
    base.check()  # which notes where the file lies now
    return base


def sample(r: Round, policy: Policy) -> Sequence[Rollout]:
    """The round's rollouts, in the order of the queries; those of an earlier, interrupted run are kept.

    They are read from their file whenever they are asked for: those of many queries fit into no memory.

    Queries whose search the sampler does not survive are set aside: `set-aside.jsonl` has them with the reason.

    Raises:
        UserError: no query is left.
        Stopped: the run was asked to stop.
    """
    r.enter("rollouts")
    queries, log = r.job.searched, RecordLog(r.here / "rollouts.jsonl", Rollout)
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
        if not kept:
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


def baseline(r: Round, adapter: Path) -> Policy:
    """The base model as `next_policy` rounds it, which is what rounds are told against; written once a run.

    It is the base's own file where every tensor keeps its type.
    """
    kind, like = r.job.recipe.quantize.type, r.job.source

    def make(out: Path) -> None:
        began, size = time.monotonic(), types_bytes(r.base.gguf, types)
        with r.progress.stage(f"base model: {type_name(like, kind)}", size, "MB", 1e-6) as advance:
            round_base(r.base, loaded, kind, out, advance, like)
        note_time(r.rounded, "quantize", time.monotonic() - began, size)

    if not (r.rounded / BASELINE).exists():
        loaded = Adapter.load(adapter, r.base)
        types = planned_types(r.base, loaded, kind, like)
        if types != {t.name: t.type for t in r.base.gguf.tensors}:
            r.rounded.build(BASELINE, make)
    return r.baseline


def next_policy(r: Round, adapter: Path, pairs: list[PreferencePair]) -> Policy:
    """The policy after this round as one GGUF, which is evaluated, and exported if it is the best.

    How much of the update it keeps is known when it is written. In the first round (`quantize.check`) llama.cpp scores
    some pairs with it too.

    Args:
        pairs: of the round.

    Raises:
        UserError: the last round is in no type that keeps what was learned.
    """
    r.enter("merge")
    cfg = r.job.recipe.quantize

    def make(out: Path) -> None:
        began = time.monotonic()
        name, kept = _merged(r, adapter, cfg.type, out)
        wider = list(KEEPING if r.last else ())
        while not (keeps := _keeps(r, name, kept)) and wider:
            name, kept = _merged(r, adapter, wider.pop(0), out)
        if r.last and not keeps:
            raise UserError(f"round {r.number}: no type keeps what was learned; begin again with a lower learner.lr")
        scored = _scored(r, out, adapter, pairs) if cfg.checks(r.number) else None
        note_time(r.here, "quantize", time.monotonic() - began, out.stat().st_size)
        found = {"type": name, "kept": kept.share, "keeps": keeps, "matrices": kept.by_matrix, "scored": scored}
        # Before the file has its name: what stands there without it was cut off, and is written anew.
        remove(r.here / "quantized.json")
        found = r.here.build_json("quantized.json", lambda: {**found, "sha256": sha256([out])})
        for line in retained_lines(found):
            r.progress.say(line)

    return Policy(r.here.build("policy.gguf", make), adapter)


def _merged(r: Round, adapter: Path, kind: TargetType, out: Path) -> tuple[str, Kept]:
    """Write base + adapter in a type; the type's name, and what the file keeps."""
    loaded, like = Adapter.load(adapter, r.base), r.job.source
    own = kind == r.job.recipe.quantize.type
    rounded = gguf_file.read(baseline(r, adapter).gguf) if own else None
    name, size = type_name(like, kind), types_bytes(r.base.gguf, planned_types(r.base, loaded, kind, like))
    with r.progress.stage(f"round {r.number}: {name}", size, "MB", 1e-6) as advance:
        return name, merge(r.base, loaded, kind, out, advance, like=like, rounded=rounded)


def _keeps(r: Round, name: str, kept: Kept) -> bool:
    """Whether a file keeps as much of the update as the recipe asks for; if not, it is said."""
    keep = r.job.recipe.quantize.keep
    if enough := kept.share is None or kept.share >= keep:
        return enough
    r.progress.say(f"warning: {name} keeps {kept.share:.0%} of what was learned, less than {keep:.0%}")
    return False


def _scored(r: Round, made: Path, adapter: Path, pairs: list[PreferencePair]) -> Scored | None:
    """What llama.cpp says of the file, beside its base and the adapter at run time."""
    lora, chosen = r.here / "adapter.gguf.partial", one_of_each(pairs)
    write_lora(r.base, adapter, lora)
    with r.progress.stage(f"round {r.number}: check", len(chosen), "questions") as advance:
        found = check(made, r.baseline.gguf, lora, chosen, r.engine, r.here / "sampler.log")
        advance(len(chosen))
    remove(lora)
    return found


def to_sample(r: Round, tuned: Policy) -> Policy:
    """What the next round samples from: the round's GGUF, or its adapter at the side of the base.

    The recipe's `policy` says which; `auto` takes the faster one, measured after the first round. A GGUF that does not
    keep what was learned is never built upon.
    """
    assert tuned.adapter
    adapter, mode, merged = tuned.adapter, r.job.recipe.policy, json.loads((r.here / "quantized.json").read_text())
    if r.last or (mode == "merge" and merged["keeps"]):
        return tuned
    if not merged["keeps"]:
        r.progress.say(f"round {r.number + 1} samples with the adapter at run time, as {merged['type']} loses too much")
    lora = r.here.build("adapter.gguf", lambda out: write_lora(r.base, adapter, out))
    beside = Policy(r.baseline.gguf, adapter, lora)
    if not merged["keeps"] or mode == "adapter":
        return beside
    speeds = r.rounded.build_json("speeds.json", lambda: _speeds(r, tuned, beside))
    return beside if speeds["adapter"] > speeds["merged"] else tuned


def _speeds(r: Round, merged: Policy, beside: Policy) -> dict[str, float]:
    """Tokens a second of both."""
    found = {n: file_speed(p.gguf, p.settings(r.engine)) for n, p in (("merged", merged), ("adapter", beside))}
    r.progress.say(f"{found['adapter']:.0f} tokens/s with the adapter at run time, {found['merged']:.0f} merged")
    return found


def evaluate(r: Round, policy: Policy) -> Evaluation:
    """Let the policy answer the tasks and the held-out queries, beside the base model's answers.

    In round 0 it is the base model: the user's own file, or `baseline`, which is kept apart where it is another file.
    Answers to the tasks that an earlier, interrupted run has are kept.

    Raises:
        Stopped: the run was asked to stop.
    """
    r.enter("evaluate")
    here = r.rounded if r.number == 0 and policy.gguf != r.job.source.path else r.here
    start, ended = time.monotonic(), list[Stats]()

    def make(out: Path) -> None:
        out.mkdir()
        log = RecordLog(here / ANSWERS, Answers)
        known = len(log.records)

        def note() -> None:
            tokens = sum(response.tokens for answers in log.records[known:] for response in answers.responses)
            peak = max((stats.peak for stats in ended), default=None)
            note_time(here, "evaluation", time.monotonic() - start, tokens, peak)

        try:
            responses = answers_to_tasks(r, policy, log, ended.append)
        except Stopped:
            note()
            raise
        log.close()
        seen = answers_to_held_out(r, policy, ended.append)
        write_evaluation(out, responses, signals(seen) if seen else None)
        note()

    here.build("evaluation", make)
    remove(here / ANSWERS)
    return read_evaluation(r.run.path, r.number) if r.number else read_own(here.path)
