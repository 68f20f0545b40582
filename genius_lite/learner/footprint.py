"""What training takes in memory and passes, as arithmetic: no model and no torch is needed to know. Bytes, pairs."""

from __future__ import annotations

import math
from typing import Literal

SLICE_BYTES = {"cpu": 6_000_000, "cuda": 48_000_000, "mps": 48_000_000}
"""Of the head's logits in fp32, and of its rows, that are in memory at once, by device.

On a CPU they stay in its caches: of 364 positions, products with 8,192 rows take 30 ms with slices of 4,096 rows and 63
with 16,384.
"""

SCORED_AT_ONCE = 8
"""Queries that each process scores at once: little is repeated when memory runs out."""

ACTIVATION_SHARE = 0.75
"""Of the free memory that activations may take, with what comes with them (`HELD`), before some are computed twice."""

HELD = 2.2
"""What the process holds for each byte that autograd keeps: intermediate results pass, and malloc keeps their place.

What oneDNN keeps of compiled programs is within it. In bf16, the peak of the updates less the model, its optimizer and
the head's slices: 1.7 of four packs of up to 445 tokens (Qwen2.5-0.5B), 2.5 of eleven of up to 504 (SmolLM2-135M).
With 2.2 the whole process comes out 6 % too high and 5 % too low.
"""


def merged_tokens(max_tokens: int, on_cpu: bool) -> int:
    """Return how many tokens a pass over several queries takes, where `max_tokens` of a single one are allowed.

    On a CPU 512 are enough for its products, and more only takes memory.
    """
    return min(max_tokens, 512) if on_cpu else max_tokens


def scored_pairs(pairs: int) -> int:
    """Return of how many of so many pairs the final margin is taken.

    They are scored in fp32, with the adapter, and without unless training was in fp32. Where bf16 is native, a pass
    takes less than half as long in it, and a training makes three of each pair: of 256 and more the margin is a tenth.
    """
    return min(pairs, 64, max(16, pairs // 16))


def layers_twice(
    wanted: bool | Literal["auto"], free: int, layers: int, width: int, inner: int, in_bf16: bool, tokens: int
) -> int:
    """Return of how many layers, the first ones, a pass over so many tokens computes the activations twice.

    As `wanted` of all, or of none; `auto`: those of the others fit into `free` bytes, the weights loaded already; see
    `kept_bytes`.
    """
    if wanted != "auto":
        return layers if wanted else 0
    every, one_less = (kept_bytes(tokens, layers, width, inner, in_bf16, twice=twice) for twice in (0, 1))
    excess = every - ACTIVATION_SHARE * free / HELD
    if excess <= 0:
        return 0
    return min(layers, math.ceil(excess / (every - one_less))) if layers > 1 else layers


def kept_bytes(tokens: int, layers: int, width: int, inner: int, in_bf16: bool, *, twice: int = 0) -> int:
    """Return what a forward pass in bf16, or else in fp32, keeps of so many tokens for the backward pass.

    Of `twice` layers the activations are computed twice: their inputs are kept, and all of one of them.
    """
    # What autograd keeps of a token in one layer, LoRA on all matrices, counted by hooks on what is saved: of
    # SmolLM2-135M, rank 16, 499 tokens, 221 MB in bf16 and in NF4, 432 MB in fp32; this says 213 and 417, without what
    # lies between A and B. Families whose norms and MLPs are not those of Llama keep up to twice as much.
    per_width, per_inner, size = (14, 4, 2) if in_bf16 else (27, 8, 4)
    layer = tokens * (per_width * width + per_inner * inner)
    return twice * tokens * width * size + max(1, layers - twice) * layer
