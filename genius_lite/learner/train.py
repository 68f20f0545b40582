"""One round's training: preference pairs in, a peft adapter folder out."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from genius_lite.errors import NonFiniteError, Stop, Stopped, UserError
from genius_lite.hardware.device import Device, Precision, learner_free_memory
from genius_lite.hardware.system import spare_memory, trim_heap
from genius_lite.learner.activations import Activations
from genius_lite.learner.batches import Packer, schedule
from genius_lite.learner.footprint import scored_pairs
from genius_lite.learner.logprob_mismatch import Sample, check, logprob_mismatch, mismatch_limit
from genius_lite.learner.loss import pair_logps, pair_loss
from genius_lite.learner.model import learn, load_policy, response_logps, weight_bytes
from genius_lite.learner.packing import Groups, Pack, by_query, computed, unshared_tokens
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup, load_in_parts
from genius_lite.learner.reference import REFERENCE, reference_scores
from genius_lite.learner.scores import clustered_error, margins
from genius_lite.learner.state import TrainingProgress, load_state, pairs_done, save_state
from genius_lite.learner.targets import without_adapter
from genius_lite.progress import Advance
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair, seed_of
from genius_lite.results.rounds import TrainReport
from genius_lite.rundir.folder import IMPORTANCE, RunDir
from genius_lite.rundir.lines import write_records

PASSES_OF_AN_UPDATE = 2  # passes of each pair: forward and backward


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
        room: tokens that a branch of the sampler has room for.
    """

    hf_checkpoint: Path
    start: Path | None
    pairs: Sequence[PreferencePair]
    samples: list[Sample]
    cfg: Learner
    device: Device
    precision: Precision
    key: tuple[int | str, ...]
    work: RunDir
    own_weights: bool = True
    room: int = 0


def train_adapter(
    job: Training,
    out: Path,
    advance: Advance = lambda n: None,
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
    cfg, stop = job.cfg, stop or Stop()
    seed = seed_of(*job.key, "adapter")
    load = partial(load_policy, job.hf_checkpoint, job.start, cfg, job.device, job.precision, seed, room=job.room)
    policy = load_in_parts(load, job.device, group) if group.sharded else load()
    if cfg.targets == "auto" and (left := without_adapter(policy)):
        say(f"these matrices get no adapter and stay as they are: {', '.join(left)}")
    groups = by_query(job.pairs)
    packer = Packer(policy, job.pairs, cfg, job.device, say, group)
    sizes = [pack.tokens for pack in packer.packs(groups)]
    longest = max(sizes)
    if cfg.chosen_alone:
        longest = max(pack.tokens for pack in packer.packs(computed(pairs, cfg) for pairs in groups))
    activations = _activations(packer, job, longest)
    mismatch = _mismatch(packer, job)
    reference = reference_scores(packer, groups, job.work, advance)
    if group.broadcast(stop.asked):
        raise Stopped
    epochs = schedule(groups, cfg, np.random.default_rng(seed_of(*job.key, "order")))
    batches = [batch for epoch in epochs for batch in epoch]
    curve = _Trainer(packer, reference, activations, job, advance, updated, stop).run(batches)

    def save() -> None:
        policy.save_pretrained(out)
        shutil.copyfile(job.work / REFERENCE / IMPORTANCE, out / IMPORTANCE)

    group.on_main(save)
    learned = margins(packer, job.pairs, reference if job.precision == "fp32" else None, job.key, advance)
    nats, epoch = list(learned.values()), curve[-len(epochs[-1]) :]
    return TrainReport(
        pairs=len(job.pairs),
        updates=len(batches),
        loss=sum(row["loss"] * row["pairs"] for row in epoch) / sum(row["pairs"] for row in epoch),
        margin=float(np.mean(nats)),
        margin_error=clustered_error(learned),
        accuracy=float(np.mean([margin > 0 for margin in nats])),
        scored_pairs=len(learned),
        scored_questions=len({question for question, _ in learned}),
        shared_tokens=1 - sum(sizes) / unshared_tokens(job.pairs),
        logprob_mismatch=mismatch,
        weight_bytes=weight_bytes(policy),
        precision=job.precision,
        device=job.device,
        curve=curve,
    )


def _activations(packer: Packer, job: Training, longest: int) -> Activations:
    """Choose of how many layers memory has room for the activations, of packs of so many tokens."""
    free = learner_free_memory(job.device) // packer.group.local_world_size
    activations = Activations(packer.policy, job.cfg.gradient_checkpointing, free, longest)
    if activations.most:
        spare_memory()
        packer.say(
            f"activations of {activations.most} of {activations.layers} layers are computed twice instead of kept "
            "(learner.gradient_checkpointing)"
        )
    return activations


def _mismatch(packer: Packer, job: Training) -> float | None:
    """Measure how far learner and sampler are apart, where there are samples.

    Raises:
        UserError: too far.
    """
    if not job.samples:
        return None
    found = logprob_mismatch(packer.policy, job.samples)
    if packer.group.is_main:
        limit = mismatch_limit(job.cfg, job.precision, job.own_weights and job.start is None)
        if word := check(found, limit, job.precision):
            packer.say(word)
    return found


def passes(job: Training) -> tuple[int, int]:
    """Count the passes of pairs through the model that a training makes, and how many an earlier process made.

    A pass backward counts as one forward, so that their rate forecasts the end: it computes as many products, as the
    matrices are frozen.
    """
    count, known = len(job.pairs), (job.work / REFERENCE).exists()
    scored = scored_pairs(count) * (1 if job.precision == "fp32" else 2)
    total = count * (1 + PASSES_OF_AN_UPDATE * job.cfg.epochs) + scored
    return total, count * known + PASSES_OF_AN_UPDATE * pairs_done(job.work)


@dataclass
class _Trainer:
    """The updates of a training."""

    packer: Packer
    reference_P2: np.ndarray
    activations: Activations
    job: Training
    advance: Advance
    updated: Callable[[int, dict[str, float]], None]
    stop: Stop

    def __post_init__(self):
        self.policy, self.group = self.packer.policy, self.packer.group
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.parameters, self.job.cfg, self.job.device)

    def run(self, batches: list[Groups]) -> list[dict[str, float]]:
        """Make those that a saved state leaves; return a row of the curve for each of all."""
        curve: list[dict[str, float]] = []
        updates = [int(batch.sizes_G.sum()) for batch in batches]
        if found := load_state(self.job.work, self.policy, self.optimizer, updates):
            curve, self.packer.limit = found.curve, min(found.limit or self.packer.limit, self.packer.limit)
            for number, row in enumerate(curve):
                self.updated(number, row)
        if len(curve) != self.group.broadcast(len(curve)):
            raise UserError(f"{self.job.work.path} has another state here than where the run is led; why?")
        self.group.broadcast_parameters(self.parameters)
        learn(self.policy)
        saved = time.monotonic()
        for update in range(len(curve), len(batches)):
            rate = learning_rate(update, len(batches), self.job.cfg)
            for options in self.optimizer.param_groups:
                options["lr"] = rate
            curve.append({**self._update(update, batches[update]), "lr": rate})
            self.updated(update, curve[-1])
            due = time.monotonic() - saved >= self.job.cfg.save_every and update + 1 < len(batches)
            asked = self.group.broadcast(self.stop.asked)
            if asked or self.group.broadcast(due):
                progress = TrainingProgress(curve, self.packer.found)
                self.group.on_main(partial(save_state, self.job.work, self.policy, self.optimizer, progress))
                saved = time.monotonic()
            if asked:
                raise Stopped
        return curve

    def _update(self, number: int, batch: Groups) -> dict[str, float]:
        if self.job.device == "cpu":
            # Packs of other sizes find no use for the gaps that earlier ones left: 0.4 GB of SmolLM2-135M's 1.5.
            trim_heap()
        pairs = [pair for group in batch for pair in group]
        groups = [computed(group, self.job.cfg) for group in batch]
        total, scores = len(pairs), self.reference_P2[batch.places_P].tolist()
        reference = {(pair.query_id, pair.step): found for pair, found in zip(pairs, scores, strict=True)}
        loss_P, margin_P = self.packer.compute(
            groups, lambda pack: self._accumulate(pack, reference, total), self.optimizer.zero_grad
        )
        if bad := [pair for pair, loss in zip(pairs, loss_P.tolist(), strict=True) if not math.isfinite(loss)]:
            self._refuse(number, "the loss", bad)
        self.group.sum_gradients(self.parameters)
        norm = float(clip_grad_norm_(self.parameters, self.job.cfg.max_grad_norm))
        if not math.isfinite(norm):
            self._refuse(number, "the gradient", pairs)
        self.optimizer.step()
        self.advance(PASSES_OF_AN_UPDATE * total)
        return {"pairs": total, "loss": loss_P.mean().item(), "margin": margin_P.mean().item(), "grad_norm": norm}

    def _accumulate(self, pack: Pack, reference: dict[tuple[str, int], list[float]], total: int) -> torch.Tensor:
        """Add the pack's part of the batch's mean loss to the gradient; loss and margin of each pair, (pairs, 2)."""
        self.activations.keep_for(pack.tokens)
        logps_B2 = response_logps(self.policy, pack.inputs()).view(-1, 2)
        logps = pair_logps(pack, logps_B2, [reference[p.query_id, p.step] for p in pack.pairs], self.job.cfg)
        loss_B = pair_loss(logps, self.job.cfg)
        (loss_B.sum() / total).backward()
        return torch.stack([loss_B, logps.margin_B], dim=1).detach()

    def _refuse(self, number: int, what: str, pairs: list[PreferencePair]) -> None:
        path = self.job.work / "bad-batch.jsonl"
        self.group.on_main(lambda: write_records(path, pairs))
        named = f"query {pairs[0].query_id}, step {pairs[0].step}"
        raise NonFiniteError(f"update {number}: {what} of {named} is not finite (saved in {path}); lower learner.lr")


def make_optimizer(parameters: list[torch.nn.Parameter], cfg: Learner, device: Device) -> torch.optim.Optimizer:
    """Make AdamW, the fused one where there is one; on request bitsandbytes' paged 8-bit one.

    Its state moves to the host when memory is short, and is rounded to 8 bits. Of an adapter it is a few megabytes, so
    that nothing is saved by either.
    """
    if cfg.optimizer == "paged_adamw_8bit":
        from bitsandbytes.optim.adamw import PagedAdamW8bit

        return PagedAdamW8bit(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=device != "mps")


def learning_rate(update: int, updates: int, cfg: Learner) -> float:
    """Return that of update `update` (from 0): a linear rise over the warm-up's share, then the recipe's schedule."""
    warmup = max(1, math.ceil(cfg.warmup * updates))
    if update < warmup:
        return cfg.lr * (update + 1) / warmup
    done = (update - warmup) / max(1, updates - warmup)
    return cfg.lr * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[cfg.schedule]
