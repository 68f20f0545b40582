"""One round's training: preference pairs in, a peft adapter folder out."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from genius_lite.errors import NonFiniteError, Stop, Stopped, UserError
from genius_lite.hardware import Device, Precision, learner_free_memory
from genius_lite.learner.batches import Groups, Packer, schedule, score
from genius_lite.learner.footprint import ACTIVATION_SHARE, SCORED_PAIRS
from genius_lite.learner.importance import Importance
from genius_lite.learner.logprob_mismatch import Sample, check, logprob_mismatch, mismatch_limit
from genius_lite.learner.loss import pair_logps, pair_loss
from genius_lite.learner.margins import clustered_error, margins
from genius_lite.learner.model import (
    activation_bytes,
    enable_gradient_checkpointing,
    load_policy,
    response_logps,
    weight_bytes,
    without_adapter,
)
from genius_lite.learner.optimizer import learning_rate, make_optimizer
from genius_lite.learner.packing import Pack, by_query, unshared_tokens
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup
from genius_lite.learner.sharding import load_in_parts
from genius_lite.learner.state import load_state, pairs_done, save_state
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair, seed_of
from genius_lite.results.rounds import TrainReport
from genius_lite.rundir.folder import IMPORTANCE, RunDir, write_json

_OF_AN_UPDATE = 2  # passes of each pair: forward and backward


@dataclass(frozen=True)
class Training:
    """What a round learns from.

    Args:
        start: the adapter of the round before, or None.
        samples: rollouts on which learner and sampler are compared first; may be empty.
        key: names the generators, (seed, round).
        work: where the state is kept while training goes on.
        own_weights: whether `hf_checkpoint` has the weights of the GGUF that the first round samples from, and not
            others that it was made of (`model.weights`).
    """

    hf_checkpoint: Path
    start: Path | None
    pairs: list[PreferencePair]
    samples: list[Sample]
    cfg: Learner
    device: Device
    precision: Precision
    key: tuple[int | str, ...]
    work: RunDir
    own_weights: bool = True


def train_adapter(
    job: Training,
    out: Path,
    advance: Callable[[int], None] = lambda n: None,
    say: Callable[[str], None] = lambda line: None,
    updated: Callable[[int, dict[str, float]], None] = lambda number, row: None,
    stop: Stop | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainReport:
    """Train on the job's pairs and save the adapter to `out`; goes on from what `job.work` holds.

    Args:
        advance: called with the passes of pairs as they are made: forward for the reference and the final margin,
            forward and backward in each epoch. Those that an earlier process made are not among them; see `passes`.
        say: told in one line what a user should know.
        updated: called with each update's number and its row of the curve; after an interruption with earlier ones too.
        stop: once it is asked for, training ends after the update under way, and its state is kept.
        group: the processes that train on this together, all with an equal job; the main one says and writes.

    Raises:
        NonFiniteError: training diverged: a loss, a gradient or a score is not finite; no adapter is kept.
        Stopped: `stop` was asked for.
        UserError: learner and sampler disagree, or not even one pair fits into memory.
        ProcessLostError: another process of the group has ended.
    """
    from accelerate import Accelerator

    cfg, stop = job.cfg, stop or Stop()
    accelerator = Accelerator(cpu=job.device == "cpu", mixed_precision="no")  # the recipe says what is computed in
    load = partial(
        load_policy, job.hf_checkpoint, job.start, cfg, job.device, job.precision, seed_of(*job.key, "adapter")
    )
    policy = load_in_parts(load, job.device, group) if group.sharded else load()
    if cfg.targets == "auto" and (left := without_adapter(policy)):
        say(f"these matrices get no adapter and stay as they are: {', '.join(left)}")
    groups = by_query(job.pairs)
    packer = Packer(policy, job.pairs, cfg, job.device, say, group)
    if group.max(_memory_is_short(policy, packer.largest(groups).tokens, job, group.local_world_size)):
        enable_gradient_checkpointing(policy)
        say("activations are computed twice instead of kept (learner.gradient_checkpointing)")
    mismatch = logprob_mismatch(policy, job.samples) if job.samples else None
    if mismatch is not None and group.is_main:
        limit = mismatch_limit(cfg, job.precision, job.own_weights and job.start is None)
        if word := check(mismatch, limit, job.precision):
            say(word)
    reference = _reference(policy, groups, packer, job, advance)
    if group.broadcast(stop.asked):
        raise Stopped
    epochs = schedule(groups, cfg, np.random.default_rng(seed_of(*job.key, "order")))
    batches = [batch for epoch in epochs for batch in epoch]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    # Not the policy: what accelerate would put around it for a group takes only passes through its own `forward`.
    optimizer = accelerator.prepare(make_optimizer(parameters, cfg, job.device))
    trainer = _Trainer(accelerator, policy, optimizer, parameters, reference, packer, job, advance, updated, stop)
    curve = trainer.run(batches)
    group.on_main(lambda: _save(policy, job.work, out))
    learned = margins(policy, job.pairs, reference if job.precision == "fp32" else None, packer, job.key, advance)
    epoch = curve[-len(epochs[-1]) :]
    every = packer.packs(groups)
    return TrainReport(
        pairs=len(job.pairs),
        updates=len(batches),
        loss=sum(row["loss"] * row["pairs"] for row in epoch) / sum(row["pairs"] for row in epoch),
        margin=float(np.mean(list(learned.values()))),
        margin_error=clustered_error(learned),
        accuracy=float(np.mean([nats > 0 for nats in learned.values()])),
        scored_pairs=len(learned),
        scored_questions=len({question for question, _ in learned}),
        shared_tokens=1 - sum(pack.tokens for pack in every) / unshared_tokens(job.pairs),
        logprob_mismatch=mismatch,
        weight_bytes=weight_bytes(policy),
        precision=job.precision,
        device=job.device,
        curve=curve,
    )


def passes(job: Training) -> tuple[int, int]:
    """Count the passes of pairs through the model that a training makes, and how many an earlier process made.

    A pass backward counts as one forward, so that their rate forecasts the end: it computes as many products, as the
    matrices are frozen.
    """
    count, known = len(job.pairs), (job.work / "reference").exists()
    scored = min(count, SCORED_PAIRS) * (1 if job.precision == "fp32" else 2)
    total = count * (1 + _OF_AN_UPDATE * job.cfg.epochs) + scored
    return total, count * known + _OF_AN_UPDATE * pairs_done(job.work)


def _save(policy: Any, work: RunDir, out: Path) -> None:
    policy.save_pretrained(out)
    shutil.copyfile(work / "reference" / IMPORTANCE, out / IMPORTANCE)


def _reference(
    policy: Any, groups: Groups, packer: Packer, job: Training, advance: Callable[[int], None]
) -> dict[tuple[str, int], list[float]]:
    """Compute the base model's score of every pair, and the importance of its columns, once, and keep them."""
    if not packer.group.broadcast((job.work / "reference").exists()):
        importance = Importance(policy, counts=lambda: not packer.in_dummy_pass)
        with policy.disable_adapter(), importance.watched():
            found = score(policy, groups, packer, advance)
        importance.gather(packer.group)

        def write(folder: Path) -> None:
            folder.mkdir()
            importance.save(folder / IMPORTANCE)
            write_json(folder / "logps.json", [[query, step, *logps] for (query, step), logps in found.items()])

        packer.group.on_main(lambda: job.work.build("reference", write))
    rows = json.loads((job.work / "reference" / "logps.json").read_text(encoding="utf-8"))
    return {(query, step): [chosen, rejected] for query, step, chosen, rejected in rows}


def _memory_is_short(policy: Any, tokens: int, job: Training, local_world_size: int) -> bool:
    if job.cfg.gradient_checkpointing != "auto":
        return job.cfg.gradient_checkpointing
    return activation_bytes(policy, tokens) > ACTIVATION_SHARE * learner_free_memory(job.device) / local_world_size


@dataclass
class _Trainer:
    accelerator: Any
    policy: Any
    optimizer: Any
    parameters: list[torch.nn.Parameter]
    reference: dict[tuple[str, int], list[float]]
    packer: Packer
    job: Training
    advance: Callable[[int], None]
    updated: Callable[[int, dict[str, float]], None]
    stop: Stop

    def run(self, batches: list[Groups]) -> list[dict[str, float]]:
        """Make all updates, or those that a saved state leaves; return a row for each."""
        curve: list[dict[str, float]] = []
        if found := load_state(self.job.work, self.policy, self.optimizer):
            curve, self.packer.limit = found["curve"], found["limit"]
            for number, row in enumerate(curve):
                self.updated(number, row)
        group = self.packer.group
        if len(curve) != group.broadcast(len(curve)):
            raise UserError(f"{self.job.work.path} has another state here than where the run is led; why?")
        group.broadcast_parameters(self.parameters)
        self.policy.train()
        saved = time.monotonic()
        for update in range(len(curve), len(batches)):
            rate = learning_rate(update, len(batches), self.job.cfg)
            for options in self.optimizer.param_groups:
                options["lr"] = rate
            curve.append({**self._update(update, batches[update]), "lr": rate})
            self.updated(update, curve[-1])
            due = time.monotonic() - saved >= self.job.cfg.save_every and update + 1 < len(batches)
            asked = group.broadcast(self.stop.asked)
            if asked or group.broadcast(due):
                progress = {"curve": curve, "limit": self.packer.limit}
                group.on_main(partial(save_state, self.job.work, update + 1, self.policy, self.optimizer, progress))
                saved = time.monotonic()
            if asked:
                raise Stopped
        return curve

    def _update(self, number: int, batch: Groups) -> dict[str, float]:
        pairs = [pair for group in batch for pair in group]
        total = len(pairs)
        loss_P, margin_P = self.packer.compute(
            batch, lambda pack: self._accumulate(pack, total), self.optimizer.zero_grad
        )
        if not torch.isfinite(loss_P).all():
            self._refuse(number, "the loss", [p for p, ok in zip(pairs, torch.isfinite(loss_P), strict=True) if not ok])
        self.packer.group.sum_gradients(self.parameters)
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.job.cfg.max_grad_norm))
        if not math.isfinite(norm):
            self._refuse(number, "the gradient", pairs)
        self.optimizer.step()
        self.advance(_OF_AN_UPDATE * total)
        return {"pairs": total, "loss": loss_P.mean().item(), "margin": margin_P.mean().item(), "grad_norm": norm}

    def _accumulate(self, pack: Pack, total: int) -> torch.Tensor:
        """Add the pack's part of the batch's mean loss to the gradient; loss and margin of each pair, (pairs, 2)."""
        logps_B2 = response_logps(self.policy, pack.inputs).view(-1, 2)
        logps = pair_logps(pack, logps_B2, [self.reference[p.query_id, p.step] for p in pack.pairs], self.job.cfg)
        loss_B = pair_loss(logps, self.job.cfg)
        self.accelerator.backward(loss_B.sum() / total)
        return torch.stack([loss_B, logps.margin_B], dim=1).detach()

    def _refuse(self, number: int, what: str, pairs: list[PreferencePair]) -> None:
        path = self.job.work / "bad-batch.jsonl"
        self.packer.group.on_main(
            lambda: path.write_bytes(b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs))
        )
        named = f"query {pairs[0].query_id}, step {pairs[0].step}"
        raise NonFiniteError(f"update {number}: {what} of {named} is not finite (saved in {path}); lower learner.lr")
