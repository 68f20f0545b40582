"""The whole program: each round the policy answers, foresees, learns from what it prefers, and answers again.

    recipe -> queries -> rollouts -> pairs -> adapter -> merged GGUF -> next round -> export

Everything below happens in a run folder whose stages are built once. To go on after an interruption, run the
same recipe again.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genius_lite.bench import file_speed
from genius_lite.errors import UserError
from genius_lite.export.gguf import copy_with_checksum
from genius_lite.foresight.pairs import hold_back, preference_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.hardware import learner_device, learner_precision
from genius_lite.prompts import Vocabulary
from genius_lite.queries import select
from genius_lite.recipe import Recipe
from genius_lite.records import PreferencePair, Query, Rollout, seed_of
from genius_lite.report.progress import Advance, Progressor
from genius_lite.report.summary import retained_lines, round_report
from genius_lite.rundir import OpenRun, RecordLog, RunDir, remove, require_space, write_text
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.tuning import context_for, engine_settings
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import SOURCE_FILE, check_supported, import_master, sha256
from genius_lite.weights.merge import merged_bytes
from genius_lite.weights.policy import BASE_FILE, measured_bytes, measured_policy
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.source import locate

_COMPARED = 8  # rollouts that learner and sampler both score
_PROBED = 16  # pairs, held back and learned from, that show what a quantized file keeps


@dataclass(frozen=True)
class Job:
    """A recipe whose model and queries were found and fit: nothing about it can be refused any more."""

    recipe: Recipe
    source: GGUF
    queries: list[Query]
    duplicates: int
    context: int

    def identity(self) -> dict[str, Any]:
        """What a run folder must share with the run that made it: settings, model and queries by content."""
        ids = [q.id for q in self.queries]
        return {
            **self.recipe.identity(),
            "model": sha256(self.source.path),
            "queries": f"{len(ids)}, {seed_of(*ids, *self.queries[0].tokens):016x}",
        }


@dataclass(frozen=True)
class Policy:
    """What samples the next round: a GGUF, and the cumulative adapter that made it (None: the base model).

    `type` is its quantization type.
    """

    gguf: Path
    adapter: Path | None
    type: str


def prepare(recipe: Recipe) -> Job:
    """Find the model and the queries, and check that they fit together and on this machine; writes nothing.

    Raises:
        UserError: whatever of the recipe cannot be used.
    """
    source = gguf_file.read(locate(recipe.model))
    check_supported(source)
    with Vocabulary.open(source.path) as vocabulary:
        queries, duplicates = select(recipe.queries, vocabulary)
    context = context_for(recipe, source, queries)
    size = merged_bytes(source)
    require_space(
        Path(recipe.out),
        4 * size + (recipe.rounds + 2) * sum(quantized_bytes(source, kind) for kind in recipe.quantize.types),
        "the 16-bit master and the rounds' models",
    )
    return Job(recipe, source, queries, duplicates, context)


def run(recipe: Recipe, progress: Progressor) -> dict[str, Any]:
    """Self-train the recipe's model; returns the summary that is also in the folder's `summary.json`.

    Raises:
        UserError: as `prepare`; or the folder cannot be used; or the queries gave no pair to learn from.
    """
    job = prepare(recipe)
    with OpenRun(Path(recipe.out), job.identity()) as folder:
        master = folder.build("master", lambda out: _import(job, out, progress))
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        policy, reports = Policy(job.source.path, adapter=None, type=""), []
        for number in range(1, recipe.rounds + 1):
            policy, report = _round(job, engine, number, policy, master, folder.sub(f"round-{number}"), progress)
            reports.append(report)
        exported = folder.build("export", lambda out: _export(job, policy, out)) / _export_name(job, policy)
        summary = {
            "out": str(folder.path),
            "exported": str(exported),
            "queries": len(job.queries),
            "duplicates_dropped": job.duplicates,
            "rounds": reports,
        }
        return folder.build_json("summary.json", lambda: summary)


def _round(
    job: Job,
    engine: EngineSettings,
    number: int,
    policy: Policy,
    master: Path,
    here: RunDir,
    progress: Progressor,
) -> tuple[Policy, dict[str, Any]]:
    """One self-training iteration: the next policy, and what happened on the way to it."""
    rollouts = _sample(job, engine, policy.gguf, number, here, progress)
    pairs = here.build_records("pairs.jsonl", lambda: _pair(job, rollouts, number), PreferencePair)
    learned, held_back = hold_back(pairs, job.recipe.learner.holdout, (job.recipe.seed, number))
    adapter = here.build(
        "adapter",
        lambda out: _train(job, master, policy.adapter, rollouts, learned, number, here.sub("training"), out, progress),
    )
    remove(here / "training")
    shown = held_back[:_PROBED] + learned[:_PROBED]
    gguf = here.build(
        "policy.gguf", lambda out: _requantize(job, engine, master, adapter, shown, number, out, progress)
    )
    report = here.build_json("report.json", lambda: round_report(number, rollouts, pairs, here.path))
    return Policy(gguf, adapter, report["quantized"]["type"]), report


# -- the stages, in order ----------------------------------------------------------------------------------


def _import(job: Job, out: Path, progress: Progressor) -> None:
    matrices = sum(len(t.shape) == 2 for t in job.source.tensors)
    with progress.stage("import", matrices, "matrices") as advance:
        import_master(job.source, out, advance)


def _sample(
    job: Job, engine: EngineSettings, policy: Path, number: int, here: RunDir, progress: Progressor
) -> list[Rollout]:
    """The round's rollouts, in the order of the queries; those of an earlier, interrupted run are kept."""
    log = RecordLog(here / "rollouts.jsonl", Rollout)
    missing = len(job.queries) - len(log.records)
    if missing:
        start, before = time.monotonic(), len(log.records)
        with progress.stage(f"round {number}: rollouts", missing, "queries") as advance:
            asyncio.run(_rollouts(job, engine, policy, number, here, log, advance))
        tokens = sum(r.sampled_tokens for r in log.records[before:])
        _note_time(here, "rollouts", time.monotonic() - start, tokens)
    log.close()
    by_id = {r.query.id: r for r in log.records}
    return [by_id[q.id] for q in job.queries]


async def _rollouts(
    job: Job,
    engine: EngineSettings,
    policy: Path,
    number: int,
    here: RunDir,
    log: RecordLog[Rollout],
    advance: Advance,
) -> None:
    cfg = job.recipe.foresight
    sampling = Sampling(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    in_flight = searches_in_flight(engine.slots, cfg)
    async with open_sampler(policy, engine, sampling, here / "sampler.log") as sampler:
        key = (job.recipe.seed, number)
        await sample_rollouts(job.queries, sampler, cfg, key, in_flight, log, advance)


def _pair(job: Job, rollouts: list[Rollout], number: int) -> list[PreferencePair]:
    cfg = job.recipe.foresight
    found = [
        pair
        for rollout in rollouts
        for pair in preference_pairs(rollout, cfg.tau, cfg.negatives, (job.recipe.seed, number, rollout.query.id))
    ]
    if not found:
        raise UserError(
            f"round {number}: no query gave two different responses; raise foresight.temperature or candidates"
        )
    return found


def _train(
    job: Job,
    master: Path,
    start: Path | None,
    rollouts: list[Rollout],
    pairs: list[PreferencePair],
    number: int,
    work: RunDir,
    out: Path,
    progress: Progressor,
) -> None:
    # torch takes seconds to import; nothing before this stage needs it.
    from genius_lite.learner.parity import Sample
    from genius_lite.learner.train import Training, train_adapter

    cfg = job.recipe.learner
    device = learner_device()
    precision = learner_precision(cfg.precision, device)
    began = time.monotonic()
    compared = rollouts[:: max(1, len(rollouts) // _COMPARED)][:_COMPARED]
    samples = [Sample(r.query.tokens, r.response(0, 0), r.logprobs(0, 0)) for r in compared]
    training = Training(master, start, pairs, samples, cfg, device, precision, (job.recipe.seed, number), work)
    passes = len(pairs) * (2 + cfg.epochs)  # the reference, the epochs, the final margin
    with progress.stage(f"round {number}: train ({precision})", passes, "pairs") as advance:
        report = train_adapter(training, out, advance, progress.say)
    seconds = time.monotonic() - began
    shutil.copyfile(master / SOURCE_FILE, out / BASE_FILE)
    write_text(out / "train.json", json.dumps({**report.as_dict(), "seconds": seconds}))


def _requantize(
    job: Job,
    engine: EngineSettings,
    master: Path,
    adapter: Path,
    pairs: list[PreferencePair],
    number: int,
    out: Path,
    progress: Progressor,
) -> None:
    cfg, log = job.recipe.quantize, out.with_name("sampler.log")
    with progress.stage(f"round {number}: {cfg.type}", measured_bytes(job.source, cfg), "MB", 1e-6) as advance:
        found = measured_policy(
            job.source, master, adapter, cfg, pairs, engine, lambda file: file_speed(file, engine), out, log, advance
        )
    write_text(out.with_name("quantized.json"), json.dumps(found))
    for line in retained_lines(found, cfg.keep):
        progress.say(line)


def _export(job: Job, policy: Policy, out: Path) -> None:
    out.mkdir()
    copy_with_checksum(policy.gguf, out / _export_name(job, policy), _export_name(job, policy))


# -- details -----------------------------------------------------------------------------------------------


def _export_name(job: Job, policy: Policy) -> str:
    """The source's name with the run's quantization type in place of its own."""
    stem = re.sub(r"[.-](Q\d\w*|IQ\d\w*|B?F16|F32)$", "", job.source.path.stem, flags=re.IGNORECASE)
    return f"{stem}.genius-{policy.type}.gguf"


def _note_time(here: RunDir, stage: str, seconds: float, amount: float) -> None:
    """Add to the round's timings; an interrupted stage that goes on later has several lines."""
    with (here / "timings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "seconds": round(seconds, 3), "amount": amount}) + "\n")
