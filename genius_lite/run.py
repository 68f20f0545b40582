"""The whole program: each round the policy answers, foresees, learns from what it prefers, and answers again.

    recipe -> queries -> rollouts -> pairs -> adapter -> merged GGUF -> next round -> export

Everything below happens in a run folder whose stages are built once. To go on after an interruption, run the
same recipe again.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.bench import file_speed
from genius_lite.errors import UserError
from genius_lite.export.bundle import export
from genius_lite.foresight.pairs import hold_back, preference_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.hardware import learner_device, learner_precision
from genius_lite.prompts import Vocabulary
from genius_lite.queries import select
from genius_lite.recipe import Recipe
from genius_lite.records import PreferencePair, Query, Rollout, seed_of
from genius_lite.report.progress import Advance, Progressor
from genius_lite.report.summary import retained_lines, round_report
from genius_lite.rundir import IMPORTANCE_FILE, OpenRun, RecordLog, RunDir, remove, require_space, write_text
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.tuning import context_for, engine_settings
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.full_precision import write_full_precision
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.hot import Speeds
from genius_lite.weights.imatrix import IMATRIX_FILE
from genius_lite.weights.importing import Base, check_supported, import_master, sha256
from genius_lite.weights.lora import write_lora
from genius_lite.weights.merge import BASE_FILE, merged_bytes
from genius_lite.weights.policy import measured_bytes, measured_policy
from genius_lite.weights.quantize import quantized_bytes
from genius_lite.weights.source import locate, locate_weights

_COMPARED = 8  # rollouts that learner and sampler both score
_PROBED = 16  # pairs, held back and learned from, that show what a quantized file keeps


@dataclass(frozen=True)
class Job:
    """A recipe whose model and queries were found and fit: nothing about it can be refused any more."""

    recipe: Recipe
    source: GGUF
    weights: Path | None
    queries: list[Query]
    duplicates: int
    context: int

    def identity(self) -> dict[str, Any]:
        """What a run folder must share with the run that made it: settings, model and queries by content."""
        ids = [q.id for q in self.queries]
        return {
            **self.recipe.identity(),
            "model": sha256(self.source.files),
            "weights": sha256(sorted(self.weights.glob("*.safetensors"))) if self.weights else None,
            "queries": f"{len(ids)}, {seed_of(*ids, *self.queries[0].tokens):016x}",
        }


@dataclass(frozen=True)
class Policy:
    """What samples the next round: a GGUF, and the cumulative adapter that it stands for (None: the base model).

    Either the adapter was merged into the GGUF, or `lora` is the same adapter for llama.cpp, applied while it runs.
    """

    gguf: Path
    adapter: Path | None = None
    lora: Path | None = None

    def settings(self, engine: EngineSettings) -> EngineSettings:
        return msgspec.structs.replace(engine, lora=str(self.lora or ""))


@dataclass(frozen=True)
class Round:
    """What the stages of a round share; `here` is its folder."""

    number: int
    job: Job
    base: Base
    engine: EngineSettings
    here: RunDir
    progress: Progressor

    @property
    def key(self) -> tuple[int, int]:
        """Names the round's generators."""
        return (self.job.recipe.seed, self.number)


def prepare(recipe: Recipe) -> Job:
    """Find the model and the queries, and check that they fit together and on this machine; writes nothing.

    Raises:
        UserError: whatever of the recipe cannot be used.
    """
    source, weights = gguf_file.read(locate(recipe.model)), locate_weights(recipe.model)
    check_supported(source)
    with Vocabulary.open(source.path) as vocabulary:
        queries, duplicates = select(recipe.queries, vocabulary)
    context = context_for(recipe, source, queries)
    size = merged_bytes(source)
    require_space(
        Path(recipe.out),
        (6 if weights else 4) * size
        + (recipe.rounds + 2) * sum(quantized_bytes(source, kind) for kind in recipe.quantize.types),
        "the 16-bit master and the rounds' models",
    )
    return Job(recipe, source, weights, queries, duplicates, context)


def run(recipe: Recipe, progress: Progressor) -> dict[str, Any]:
    """Self-train the recipe's model; returns the summary that is also in the folder's `summary.json`.

    Raises:
        UserError: as `prepare`; or the folder cannot be used; or the queries gave no pair to learn from.
    """
    job = prepare(recipe)
    with OpenRun(Path(recipe.out), job.identity()) as folder:
        base = _import(job, folder, progress)
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        policy, reports = Policy(job.source.path), []
        for number in range(1, recipe.rounds + 1):
            here = folder.sub(f"round-{number}")
            policy, report = _round(Round(number, job, base, engine, here, progress), policy)
            reports.append(report)
        exported = folder.build("export", lambda out: export(folder.path, None, "gguf", [], out))
        summary = {
            "out": str(folder.path),
            "exported": str(next(exported.glob("*.gguf"))),
            "queries": len(job.queries),
            "duplicates_dropped": job.duplicates,
            "rounds": reports,
        }
        return folder.build_json("summary.json", lambda: summary)


def _round(r: Round, policy: Policy) -> tuple[Policy, dict[str, Any]]:
    """One self-training iteration: the next policy, and what happened on the way to it."""
    rollouts = _sample(r, policy)
    pairs = r.here.build_records("pairs.jsonl", lambda: _pair(r, rollouts), PreferencePair)
    learned, held_back = hold_back(pairs, r.job.recipe.learner.holdout, r.key)
    adapter = r.here.build("adapter", lambda out: _train(r, policy.adapter, rollouts, learned, out))
    remove(r.here / "training")
    shown = held_back[:_PROBED] + learned[:_PROBED]
    tuned = _next_policy(r, adapter, shown, tokens=sum(rollout.sampled_tokens for rollout in rollouts))
    report = r.here.build_json("report.json", lambda: round_report(r.number, rollouts, pairs, r.here.path))
    return tuned, report


# -- the stages, in order ----------------------------------------------------------------------------------


def _import(job: Job, folder: RunDir, progress: Progressor) -> Base:
    """The learner's copy of the model: of the GGUF itself, or of full-precision weights in its place."""

    def full_precision(weights: Path, out: Path) -> None:
        out.mkdir()
        with progress.stage("full precision", merged_bytes(job.source), "MB", 1e-6) as advance:
            write_full_precision(job.source, weights, out / job.source.path.name, advance)

    def master(out: Path) -> None:
        matrices = sum(len(t.shape) == 2 for t in source.tensors)
        with progress.stage("import", matrices, "matrices") as advance:
            import_master(source, out, advance, job.recipe.model.weights or job.recipe.model.gguf)

    source, weights = job.source, job.weights
    if weights:
        made = folder.build("full-precision", lambda out: full_precision(weights, out))
        source = gguf_file.read(made / source.path.name)
    return Base(source, folder.build("master", master))


def _sample(r: Round, policy: Policy) -> list[Rollout]:
    """The round's rollouts, in the order of the queries; those of an earlier, interrupted run are kept."""
    queries, log = r.job.queries, RecordLog(r.here / "rollouts.jsonl", Rollout)
    missing = len(queries) - len(log.records)
    if missing:
        start, before = time.monotonic(), len(log.records)
        with r.progress.stage(f"round {r.number}: rollouts", missing, "queries") as advance:
            asyncio.run(_rollouts(r, policy, log, advance))
        tokens = sum(rollout.sampled_tokens for rollout in log.records[before:])
        _note_time(r.here, "rollouts", time.monotonic() - start, tokens)
    log.close()
    by_id = {rollout.query.id: rollout for rollout in log.records}
    return [by_id[q.id] for q in queries]


async def _rollouts(r: Round, policy: Policy, log: RecordLog[Rollout], advance: Advance) -> None:
    cfg = r.job.recipe.foresight
    sampling = Sampling(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    in_flight = searches_in_flight(r.engine.slots, cfg)
    async with open_sampler(policy.gguf, policy.settings(r.engine), sampling, r.here / "sampler.log") as sampler:
        await sample_rollouts(r.job.queries, sampler, cfg, r.key, in_flight, log, advance)


def _pair(r: Round, rollouts: list[Rollout]) -> list[PreferencePair]:
    cfg = r.job.recipe.foresight
    found = [
        pair
        for rollout in rollouts
        for pair in preference_pairs(rollout, cfg.tau, cfg.negatives, (*r.key, rollout.query.id))
    ]
    if not found:
        raise UserError(
            f"round {r.number}: no query gave two different responses; raise foresight.temperature or candidates"
        )
    return found


def _train(r: Round, start: Path | None, rollouts: list[Rollout], pairs: list[PreferencePair], out: Path) -> None:
    """The cumulative adapter, with the base's hash, the importance matrix and the training's figures beside it."""
    # torch takes seconds to import; nothing before this stage needs it.
    from genius_lite.learner.parity import Sample
    from genius_lite.learner.train import Training, train_adapter

    cfg, began, device = r.job.recipe.learner, time.monotonic(), learner_device()
    precision = learner_precision(cfg.precision, device)
    compared = rollouts[:: max(1, len(rollouts) // _COMPARED)][:_COMPARED]
    samples = [Sample(c.query.tokens, c.response(0, 0), c.logprobs(0, 0)) for c in compared]
    work = r.here.sub("training")
    training = Training(r.base.master, start, pairs, samples, cfg, device, precision, r.key, work)
    passes = len(pairs) * (2 + cfg.epochs)  # the reference, the epochs, the final margin
    with r.progress.stage(f"round {r.number}: train ({precision})", passes, "pairs") as advance:
        report = train_adapter(training, out, advance, r.progress.say)
    imatrix.write(out / IMPORTANCE_FILE, r.base.tensor_map, f"{len(pairs)} preference pairs", out / IMATRIX_FILE)
    remove(out / IMPORTANCE_FILE)
    write_text(out / BASE_FILE, json.dumps({"sha256": r.base.sha256}))
    write_text(out / "train.json", json.dumps({**report.as_dict(), "seconds": time.monotonic() - began}))


def _next_policy(r: Round, adapter: Path, shown: list[PreferencePair], tokens: int) -> Policy:
    """Base + adapter in one GGUF; or, where a round follows and the recipe says so, side by side.

    Args:
        tokens: that the next round is expected to sample.
    """
    mode = r.job.recipe.policy
    if mode == "merge" or r.number == r.job.recipe.rounds:
        return Policy(_requantize(r, adapter, shown), adapter)
    hot = Policy(r.job.source.path, adapter, r.here.build("adapter.gguf", lambda out: write_lora(r.base, adapter, out)))
    if mode == "adapter":
        return hot
    if r.number == 1:  # both ways are measured
        speeds = _speeds(r, _requantize(r, adapter, shown), hot)
    else:
        speeds = Speeds(**json.loads((r.here.path.parent / "round-1" / "speeds.json").read_text()))
    if speeds.favour_adapter(tokens, merged=r.number == 1):
        return hot
    return Policy(_requantize(r, adapter, shown), adapter)


def _requantize(r: Round, adapter: Path, shown: list[PreferencePair]) -> Path:
    cfg, start = r.job.recipe.quantize, time.monotonic()

    def make(out: Path) -> None:
        log = r.here / "sampler.log"
        with r.progress.stage(
            f"round {r.number}: {cfg.type}", measured_bytes(r.job.source, cfg), "MB", 1e-6
        ) as advance:
            found = measured_policy(
                r.base, adapter, cfg, shown, r.engine, lambda file: file_speed(file, r.engine), out, log, advance
            )
        write_text(r.here / "quantized.json", json.dumps({**found, "seconds": time.monotonic() - start}))
        for line in retained_lines(found, cfg.keep):
            r.progress.say(line)

    return r.here.build("policy.gguf", make)


def _speeds(r: Round, merged: Path, hot: Policy) -> Speeds:
    def measure() -> dict[str, float]:
        seconds = json.loads((r.here / "quantized.json").read_text())["seconds"]
        speeds = Speeds(seconds, file_speed(merged, r.engine), file_speed(hot.gguf, hot.settings(r.engine)))
        r.progress.say(speeds.line())
        return asdict(speeds)

    return Speeds(**r.here.build_json("speeds.json", measure))


def _note_time(here: RunDir, stage: str, seconds: float, amount: float) -> None:
    """Add to the round's timings; an interrupted stage that goes on later has several lines."""
    with (here / "timings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": stage, "seconds": round(seconds, 3), "amount": amount}) + "\n")
