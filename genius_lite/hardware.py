"""What this machine offers: cores for llama.cpp, and the learner's device and precision."""

from __future__ import annotations

import os
from typing import Literal

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["nf4", "bf16", "fp32"]


def cores() -> int:
    """Processor cores that this process may use (a container's limit included, where the kernel tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def learner_device() -> Device:
    """The device that torch trains on."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def learner_precision(wanted: Literal["auto", "nf4", "bf16", "fp32"], device: Device) -> Precision:
    """The precision of the frozen weights: `wanted`, or the smallest that the device trains with."""
    if wanted != "auto":
        return wanted
    return "bf16" if device == "mps" else "nf4"


def compute_in_bf16(device: Device) -> bool:
    """Whether the device multiplies bf16 matrices natively.

    A CPU without AVX-512 emulates them: 9 times slower than fp32 on an AVX2 EPYC.
    """
    import torch

    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
