"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from genius_lite.hardware import Device
from genius_lite.recipe import Learner


def make_optimizer(parameters: list[torch.nn.Parameter], cfg: Learner, device: Device) -> torch.optim.Optimizer:
    """Make AdamW, on CUDA the fused one; on request bitsandbytes' paged 8-bit one.

    Its state moves to the host when memory is short, and is rounded to 8 bits. Of an adapter it is a few megabytes, so
    that nothing is saved by either.
    """
    if cfg.optimizer == "paged_adamw_8bit":
        from bitsandbytes.optim.adamw import PagedAdamW8bit

        return PagedAdamW8bit(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay, fused=device == "cuda")


def learning_rate(update: int, updates: int, cfg: Learner) -> float:
    """Return that of update `update` (from 0): a linear rise over the warm-up's share, then the recipe's schedule."""
    warmup = max(1, math.ceil(cfg.warmup * updates))
    if update < warmup:
        return cfg.lr * (update + 1) / warmup
    done = (update - warmup) / max(1, updates - warmup)
    return cfg.lr * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[cfg.schedule]
