"""The stages of a round, in order. Each is built once in the run folder; what is there already is not built again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from shutil import copyfile

import msgspec

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import NoPairError, Stopped, UserError
from genius_lite.evaluate.checkers import read_answer
from genius_lite.foresight.pairs import draw_pairs, why_none
from genius_lite.hardware.device import Precision, learner_device, learner_precision
from genius_lite.hardware.system import give_memory_back
from genius_lite.pipeline.backends import Search, search
from genius_lite.pipeline.evaluation import BaseResult, cool, evaluate
from genius_lite.pipeline.job import Job
from genius_lite.pipeline.round import Policy, Round, counted, note_time, note_untimed, timed
from genius_lite.pipeline.stand_in import stand_in
from genius_lite.pipeline.trust import trust_checkpoint, trust_pairs, trust_policy, trust_searches, trusted_importance
from genius_lite.progress import Progress, Stage
from genius_lite.recipe import QuantType, TargetType
from genius_lite.records import FailedQuery, PreferencePair, Rollout
from genius_lite.report.summary import kept_lines
from genius_lite.results.rounds import Quantized, ScoredMargin
from genius_lite.rundir import folder
from genius_lite.rundir.disk import remove
from genius_lite.rundir.documents import read_typed
from genius_lite.rundir.folder import RunDir, write_json
from genius_lite.rundir.lines import Lines, RecordLog, write_records
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler.interface import run_until_complete
from genius_lite.text import amount
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import BASE_FILE, IMATRIX_FILE, Adapter, write_imatrix
from genius_lite.weights.full_precision import load_weights, write_full_precision
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import FULL_PRECISION, MAP_FILE, Base, import_checkpoint, save_checkpoint
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.merge import Kept, Rounded, merge, planned_types, round_base
from genius_lite.weights.quantize import quantized_bytes, type_name, types_bytes
from genius_lite.weights.retained import check, one_of_each
from genius_lite.weights.source import ORIGINAL, copy_original, named_origin
from genius_lite.weights.untrusted import vouch

COMPARED = 8  # rollouts that learner and sampler both score
KEEPING: tuple[QuantType, ...] = ("Q8_0", "F16")  # for a round whose own type lost what was learned


def import_base(job: Job, run: RunDir, progress: Progress) -> Base:
    """Make the learner's copy of the model: of the GGUF itself, or of full-precision weights in its place."""
    source, weights, origin = job.source, job.weights, named_origin(job.recipe.model)
    load = cache(lambda folder: load_weights(folder, job.source))  # once, if both are to be made

    def full_precision(weights: Path, out: Path) -> None:
        out.mkdir()
        with progress.stage("full precision", quantized_bytes(job.source, "F16"), "MB", 1e-6) as advance:
            state, path = load(weights).state_dict(), out / job.source.path.name
            write_full_precision(job.source, state, weights, path, advance).save(out / MAP_FILE)

    def hf_checkpoint(out: Path) -> None:
        matrices, start = sum(len(t.shape) == 2 for t in source.tensors), time.monotonic()
        with progress.stage("import", matrices, "matrices") as advance:
            if weights:
                save_checkpoint(source, load(weights), TensorMap.load(source.path.parent / MAP_FILE), out, origin)
                copy_original(weights, out / ORIGINAL)
            else:
                import_checkpoint(source, out, advance, origin)
        vouch(out / "config.json")
        give_memory_back()
        note_time(run, Stage.IMPORT, time.monotonic() - start, matrices)

    if weights:
        source = gguf_file.read(run.build(FULL_PRECISION, partial(full_precision, weights)) / source.path.name)
    base = Base(source, run.build(folder.CHECKPOINT, hf_checkpoint))
    base.check()  # which notes where the file lies now
    return base


def sample(r: Round, policy: Policy) -> Sequence[Rollout]:
    """Search the round's queries; those of an earlier, interrupted run are kept.

    Queries whose search the sampler does not survive are set aside: `failed.jsonl` has them with the reason.

    Returns:
        The rollouts in the order of the queries, read from their file whenever they are asked for.

    Raises:
        UserError: no query is left.
        Stopped: the run was asked to stop.
    """
    r.note_origin(policy)  # a stop takes effect below
    r.enter(Stage.ROLLOUTS)
    queries, log = r.queries, RecordLog(r.here / folder.ROLLOUTS, Rollout)
    failures = RecordLog(r.here / folder.FAILED_FILE, FailedQuery)
    trust_searches(r, log.records, failures.records)
    if not (r.here / folder.PAIRS).exists():
        note_untimed(r.here, Stage.ROLLOUTS, sum(rollout.sampled_tokens for rollout in log.records))
    over = {*log.records.query_ids(), *failures.records.query_ids()}
    if missing := [q for q in queries if q.id not in over]:
        r.reopen()
        if not r.job.recipe.sampler.elsewhere:
            policy = stand_in(r, policy, len(missing) / len(queries))
        r.progress.searched_before(log.records)
        start, before = time.monotonic(), len(log.records)
        stage = r.progress.stage(f"round {r.number}: rollouts", len(queries), "queries", done=len(over))
        with Vocabulary.open(r.job.source.path) as vocabulary, stage as advance:
            stats = None
            try:
                stats = run_until_complete(search(Search(r, policy, missing, vocabulary, log, failures, advance)))
            finally:  # what a search that failed came to is not searched again
                if tokens := sum(rollout.sampled_tokens for rollout in log.records[before:]):
                    note_time(r.here, Stage.ROLLOUTS, time.monotonic() - start, tokens, stats)
            if {q.id for q in queries} - {*log.records.query_ids(), *failures.records.query_ids()}:
                raise Stopped
    log.close()
    failures.close()
    remove(r.here / folder.STAND_IN)
    place = {query: number for number, query in enumerate(log.records.query_ids())}
    if not place:
        raise UserError(f"round {r.number}: the sampler survived no query; {r.sampler_log} has its last words")
    return log.records.pick(place[q.id] for q in queries if q.id in place)


def pair(r: Round, rollouts: Sequence[Rollout]) -> Sequence[PreferencePair]:
    """Make the pairs to learn from, which stay in their file; `filtered.json` counts what each filter left without one.

    Raises:
        NoPairError: none is left; or of a later round fewer than `pairs.at_least`.
    """
    r.enter(Stage.PAIRS)
    cfg, tau, began = r.job.recipe.pairs, r.job.recipe.foresight.tau, time.monotonic()

    def make(out: Path) -> None:
        with Vocabulary.open(r.job.source.path) as vocabulary:
            prompt = r.job.queries[0].tokens  # as every one ends: all have the same template

            def stated(tokens: list[int]) -> str | None:
                return read_answer(r.job.recipe.queries.answers, vocabulary.said(prompt, tokens).answer)

            write_records(out, draw_pairs(rollouts, cfg, tau, r.key, stated, left_out := Counter[str]()))
        r.here.put_json(folder.LEFT_OUT, dict(left_out))
        count = len(Lines(out, PreferencePair))
        if not count:
            raise NoPairError(f"round {r.number}: no pair to learn from: {why_none(r.job.recipe, left_out, rollouts)}")
        if count < cfg.at_least and r.number > 1:
            few = f"{amount(count, 'pairs')} to learn from"
            raise NoPairError(f"round {r.number}: {few}, fewer than pairs.at_least ({cfg.at_least})")
        note_time(r.here, Stage.PAIRS, time.monotonic() - began, count)
        r.reopen()

    made = r.here.build(folder.PAIRS, make)
    trust_pairs(r, made)
    return Lines(made, PreferencePair)


def train(r: Round, start: Path | None, rollouts: Sequence[Rollout], pairs: Sequence[PreferencePair]) -> Path:
    """Train the cumulative adapter; the base's hash, the importance matrix and the training's figures are beside it."""
    # torch takes seconds to import; nothing before this stage needs it.
    from genius_lite.learner.logprob_mismatch import Sample
    from genius_lite.learner.train import Training, passes, train_adapter
    from genius_lite.learner.worker_loop import with_workers

    r.enter(Stage.TRAIN)

    def make(out: Path) -> None:
        trust_checkpoint(r.base)
        if start:
            Adapter.load(start, r.base)  # which sees that it belongs to the base
        cfg, began, device = r.job.recipe.learner, time.monotonic(), learner_device()
        work, sixteen = r.here.sub(folder.TRAINING), quantized_bytes(r.job.source, "F16") * r.group.local_world_size
        # A run that goes on elsewhere, or beside other programs, must not choose again; nor may its later rounds.
        before = next((made.precision for here in r.earlier if (made := here.training)), None)
        precision: Precision = work.build_json(
            folder.PRECISION, lambda: before or learner_precision(cfg.precision, device, sixteen), Precision
        )
        compared = rollouts[:: max(1, len(rollouts) // COMPARED)][:COMPARED]
        samples = [Sample(c.query.tokens, c.response(0, 0), c.logprobs(0, 0)) for c in compared]
        base, own, room = r.base.hf_checkpoint, r.job.weights is None, r.engine.room
        training = Training(base, start, pairs, samples, cfg, device, precision, r.key, work, own, room)
        total, done = passes(training)
        stage = r.progress.stage(f"round {r.number}: train ({precision})", total, "passes", done=done)
        note_untimed(r.here, Stage.TRAIN, done)
        with stage as advance, counted(r.here, Stage.TRAIN, began, advance) as count, with_workers(r.group, training):
            report = train_adapter(training, out, count, r.progress.say, r.tracker.update, r.stop, r.group)
        write_imatrix(out / folder.IMPORTANCE, r.base.tensor_map, f"{len(pairs)} preference pairs", out / IMATRIX_FILE)
        remove(out / folder.IMPORTANCE)
        write_json(out / BASE_FILE, {"sha256": r.base.sha256})
        give_memory_back()
        took = RoundFolder(r.number, r.here.path).total(Stage.TRAIN)
        write_json(out / folder.TRAINED, msgspec.structs.replace(report, seconds=took.seconds if took else 0.0))

    adapter = r.here.build(folder.ADAPTER, make)
    remove(r.here / folder.TRAINING)
    return adapter


def evaluate_base(r: Round, adapter: Path) -> BaseResult:
    """Evaluate what rounds are told against: the base model, rounded as `next_policy` rounds; once a run.

    Raises:
        Stopped: the run was asked to stop.
    """
    base, start = baseline(r, adapter), replace(r, number=0)
    return BaseResult(evaluate(start, base), cool(start, base))


def baseline(r: Round, adapter: Path) -> Policy:
    """Round the base model as `next_policy` rounds, which is what rounds are told against; written once a run.

    It is the base's own file where every tensor keeps its type.
    """
    if (r.rounded / folder.BASELINE).exists():
        trust_policy(r.rounded / folder.BASELINE, r.base)
        return r.baseline
    kind, like, learned = r.job.recipe.quantize.type, r.job.source, Adapter.load(adapter, r.base)

    def make(out: Path) -> None:
        began, size = time.monotonic(), types_bytes(r.base.gguf, types)
        with r.progress.stage(f"base model: {type_name(like, kind)}", size, "MB", 1e-6) as advance:
            round_base(r.base, learned, kind, out, advance, like)
        remove(r.rounded / IMATRIX_FILE)  # of a run that was stopped here, or of another one's
        r.rounded.build(IMATRIX_FILE, lambda out: copyfile(adapter / IMATRIX_FILE, out))
        vouch(out)
        seconds = time.monotonic() - began
        note_time(r.rounded, Stage.MERGE, seconds, size, parts={"base": seconds})

    types = planned_types(r.base, learned, kind, like)
    if types != {t.name: t.type for t in r.base.gguf.tensors}:
        r.rounded.build(folder.BASELINE, make)
    return r.baseline


def next_policy(r: Round, adapter: Path, pairs: Sequence[PreferencePair]) -> Policy:
    """Merge the policy after this round into one GGUF, which is evaluated, and exported if it is the best.

    How much of the update it keeps is known when it is written. In the first round (`quantize.check`) llama.cpp scores
    some of the round's pairs with it too.
    """
    r.enter(Stage.MERGE)
    cfg = r.job.recipe.quantize

    def make(out: Path) -> None:
        began, parts = time.monotonic(), dict[str, float]()
        learned = Adapter.load(adapter, r.base)
        rounded = Rounded(gguf_file.read(baseline(r, adapter).gguf), trusted_importance(r))

        def size(kind: TargetType) -> int:
            return types_bytes(r.base.gguf, planned_types(r.base, learned, kind, r.job.source))

        def write(kind: TargetType) -> tuple[str, Kept]:
            like, name = r.job.source, type_name(r.job.source, kind)
            stage = r.progress.stage(f"round {r.number}: {name}", size(kind), "MB", 1e-6)
            with timed(parts, "file"), stage as advance:
                own = rounded if kind == cfg.type else None
                kept = merge(r.base, learned, kind, out, advance, like=like, rounded=own)
            if kept.loses(cfg.keep):
                share = f"{kept.share or 0:.1%} of what was learned, less than {cfg.keep:.0%}"
                r.progress.say(f"warning: {name} keeps {share}")
            return name, kept

        (name, kept), widened = write(cfg.type), False
        for wider in KEEPING:
            if kept.loses(cfg.keep) and size(wider) > size(cfg.type):
                (name, kept), widened = write(wider), True
        with timed(parts, "check"):
            # Beside the base in another type the difference of two roundings would be taken for what was learned.
            scored = _score(r, out, adapter, pairs) if cfg.checks(r.number) and not widened else None
        note_time(r.here, Stage.MERGE, time.monotonic() - began, out.stat().st_size, parts=parts)
        keeps, digest = not kept.loses(cfg.keep), sha256([out])
        found = Quantized(name, kept.share, keeps, widened, kept.error, kept.by_matrix, scored, digest)
        r.here.put_json(folder.QUANTIZED, found)  # before the file has its name
        vouch(out)
        for line in kept_lines(found):
            r.progress.say(line)

    # A power cut may leave a file's name without what stood in it.
    if not (noted := read_typed(r.here / folder.QUANTIZED, Quantized)):
        remove(r.here / folder.POLICY)
    made = r.here.build(folder.POLICY, make)
    learned_from = (r.run.path / folder.round_name(r.number + 1) / folder.ADAPTER).exists()  # it samples no more
    trust_policy(made, r.base, noted.sha256 if noted and not learned_from else "")
    return Policy(made, adapter)


def _score(r: Round, made: Path, adapter: Path, pairs: Sequence[PreferencePair]) -> ScoredMargin | None:
    """Let llama.cpp score pairs with the file, with its base, and with the adapter at run time."""
    lora, chosen = r.here / f"{folder.LORA}.partial", one_of_each(pairs)
    r.write_lora(adapter, lora)
    with r.progress.stage(f"round {r.number}: check", len(chosen), "questions") as advance:
        found = check(made, r.baseline.gguf, lora, chosen, r.engine, r.sampler_log, r.progress.say)
        advance(len(chosen))
    remove(lora)
    return found
