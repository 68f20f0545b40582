"""One round's training: preference pairs in, a peft adapter folder out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from genius_lite.hardware import Device, Precision
from genius_lite.learner.loss import aco_loss, calibration_weight, margin
from genius_lite.learner.model import load_policy, response_logps
from genius_lite.learner.packing import Pack, by_query, packs
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair, seed_of


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; nothing of the round's adapter is kept."""


@dataclass(frozen=True)
class TrainReport:
    """What a round's training did.

    `loss` is the mean over the last epoch's pairs, each before its update. `margin` (nats) is the mean over the
    pairs when training has ended, of the policy against the base model, and `accuracy` the share of pairs where
    it is positive. `shared_tokens` is the share of tokens that packing did not compute twice.
    """

    pairs: int
    updates: int
    loss: float
    margin: float
    accuracy: float
    shared_tokens: float
    precision: str
    device: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_adapter(
    master: Path,
    start: Path | None,
    pairs: list[PreferencePair],
    cfg: Learner,
    device: Device,
    precision: Precision,
    key: tuple[int | str, ...],
    out: Path,
    advance: Callable[[int], None] = lambda n: None,
) -> TrainReport:
    """Train on `pairs` and save the adapter to `out`.

    Args:
        start: the adapter of the round before, or None.
        key: names the generators, (seed, round).
        advance: called with the pairs of each forward pass: the reference's, each epoch's, the final margin's.

    Raises:
        NonFiniteLossError: training diverged.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    policy = load_policy(master, start, cfg, device, precision, seed_of(*key, "adapter"))
    groups = by_query(pairs)
    with policy.disable_adapter():
        reference = _score(policy, groups, cfg, device, advance)
    batches = _schedule(groups, cfg, np.random.default_rng(seed_of(*key, "order")))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=0.0)
    warmup = max(1, math.ceil(cfg.warmup * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / warmup))
    policy, optimizer = accelerator.prepare(policy, optimizer)
    policy.train()
    losses: list[float] = []
    for number, batch in enumerate(batches):
        losses += _update(accelerator, policy, batch, reference, cfg, device, number, advance)
        accelerator.clip_grad_norm_(parameters, cfg.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    policy = accelerator.unwrap_model(policy)
    policy.save_pretrained(out)
    learned = _score(policy, groups, cfg, device, advance)
    margins_P = torch.stack([margin(*learned[pair], *reference[pair]) for pair in reference])
    unshared = sum(pack.unshared_tokens for batch in batches for pack in batch)
    computed = sum(len(pack.tokens_T) for batch in batches for pack in batch)
    return TrainReport(
        pairs=len(pairs),
        updates=len(batches),
        loss=fmean(losses[-len(pairs) :]),
        margin=margins_P.mean().item(),
        accuracy=(margins_P > 0).float().mean().item(),
        shared_tokens=1 - computed / unshared,
        precision=precision,
        device=device,
    )


def _score(
    policy: Any, groups: list[list[PreferencePair]], cfg: Learner, device: Device, advance: Callable[[int], None]
) -> dict[tuple[str, int], torch.Tensor]:
    """(query id, step) -> summed log-probabilities (chosen, rejected), nats, shape (2,)."""
    scores = {}
    with torch.no_grad():
        for pack in packs(groups, cfg.max_pack_tokens):
            logps_P2 = response_logps(policy, pack, device).view(-1, 2)
            scores |= {(p.query_id, p.step): logps_2 for p, logps_2 in zip(pack.pairs, logps_P2, strict=True)}
            advance(len(pack.pairs))
    return scores


def _schedule(groups: list[list[PreferencePair]], cfg: Learner, rng: np.random.Generator) -> list[list[Pack]]:
    """For every update of every epoch its packs: shuffled queries until `batch_pairs` pairs are together."""
    updates = []
    for _ in range(cfg.epochs):
        batch: list[list[PreferencePair]] = []
        for i in rng.permutation(len(groups)):
            batch.append(groups[i])
            if sum(map(len, batch)) >= cfg.batch_pairs:
                updates.append(packs(batch, cfg.max_pack_tokens))
                batch = []
        if batch:
            updates.append(packs(batch, cfg.max_pack_tokens))
    return updates


def _update(
    accelerator: Any,
    policy: Any,
    batch: list[Pack],
    reference: dict[tuple[str, int], torch.Tensor],
    cfg: Learner,
    device: Device,
    number: int,
    advance: Callable[[int], None],
) -> list[float]:
    """Accumulate the gradient of the batch's mean loss; the loss of each pair."""
    total = sum(len(pack.pairs) for pack in batch)
    losses = []
    for pack in batch:
        logps_P2 = response_logps(policy, pack, device).view(-1, 2)
        ref_P2 = torch.stack([reference[p.query_id, p.step] for p in pack.pairs])
        weight_P = calibration_weight(
            torch.tensor([p.chosen_advantage for p in pack.pairs], device=device),
            torch.tensor([p.rejected_advantage for p in pack.pairs], device=device),
            cfg.alpha,
            cfg.calibration,
        )
        chosen_P, rejected_P = logps_P2.unbind(1)
        ref_chosen_P, ref_rejected_P = ref_P2.unbind(1)
        loss_P = aco_loss(margin(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P, weight_P), cfg.beta)
        if not torch.isfinite(loss_P).all():
            bad = pack.pairs[int((~torch.isfinite(loss_P)).nonzero()[0])]
            raise NonFiniteLossError(
                f"update {number}: the loss of query {bad.query_id}, step {bad.step} is not finite; lower learner.lr"
            )
        accelerator.backward(loss_P.sum() / total)
        losses += loss_P.tolist()
        advance(len(pack.pairs))
    return losses
