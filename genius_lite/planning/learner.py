"""What training holds in memory, by part."""

from __future__ import annotations

from dataclasses import dataclass

from genius_lite.hardware import Precision, fitting_precision
from genius_lite.learner.footprint import ACTIVATION_SHARE, HELD, SLICE_BYTES, kept_bytes
from genius_lite.planning.machine import Machine
from genius_lite.planning.shape import Shape
from genius_lite.recipe import Learner

_COMPUTED_AGAIN = 150_000_000  # beside what is kept: SmolLM2 0.21, Qwen2.5-0.5B 0.13 GB
_SLICES = 2  # of the head at once: logits and the rows that they come from, forward; logits and their slopes, backward
_NF4_BYTES = 0.5 + 4 / 64  # a weight, and the scale of 64 of them


@dataclass(frozen=True)
class Training:
    """How a recipe's learner section comes out on a machine.

    `in_bf16` is what is computed in, else fp32; `tokens` are those of the largest forward pass, `counted` those of them
    whose log-probability is wanted; `checkpointing` says that activations are computed twice.
    """

    precision: Precision
    in_bf16: bool
    tokens: int
    counted: int
    checkpointing: bool


def settled(cfg: Learner, shape: Shape, machine: Machine, tokens: int, counted: int) -> Training:
    """What `auto` comes to, as `learner_precision` and the training itself decide it."""
    precision = cfg.precision
    if precision == "auto":
        fitting = fitting_precision(machine.bf16, 2 * shape.parameters, machine.learner_memory)
        precision = fitting or ("bf16" if machine.device == "mps" else "nf4")
    in_bf16 = precision == "bf16" or (precision == "nf4" and machine.bf16)
    twice = cfg.gradient_checkpointing
    if twice == "auto":
        kept = kept_bytes(tokens, shape.layers, shape.width, shape.inner, in_bf16)
        left = machine.learner_memory - weights(shape, precision, in_bf16)
        twice = HELD * kept > ACTIVATION_SHARE * left
    return Training(precision, in_bf16, tokens, counted, twice)


def parts(cfg: Learner, shape: Shape, training: Training) -> dict[str, int]:
    """Bytes on the learner's device at the fullest moment of an update."""
    kept = kept_bytes(
        training.tokens, shape.layers, shape.width, shape.inner, training.in_bf16, checkpointing=training.checkpointing
    )
    logits = min(SLICE_BYTES, 4 * training.counted * shape.vocabulary)
    rows = min(SLICE_BYTES, 4 * shape.vocabulary * shape.width)
    trained = shape.adapter_weights(cfg)
    return {
        "weights": weights(shape, training.precision, training.in_bf16),
        "activations": int(_held(training) * kept) + _COMPUTED_AGAIN * training.checkpointing,
        "head": _SLICES * max(logits, rows),
        # The adapter and its gradient in fp32, and Adam's two moments of each number.
        "optimizer": trained * (4 + 4 + (2 if cfg.optimizer == "paged_adamw_8bit" else 8)),
    }


def _held(training: Training) -> float:
    return 1.0 if training.checkpointing else HELD


def weights(shape: Shape, precision: Precision, in_bf16: bool) -> int:
    """Bytes of the frozen weights."""
    if precision != "nf4":
        return (2 if precision == "bf16" else 4) * shape.parameters
    scales = 4 * shape.vocabulary * (1 if shape.tied else 2)
    return int(_NF4_BYTES * shape.matrices) + shape.tables + scales + (2 if in_bf16 else 4) * shape.vectors
