"""The device that torch trains on, its memory, and the precision that suits it."""

from __future__ import annotations

import os
import platform
from typing import Any, Literal

from genius_lite.hardware.system import free_memory

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["nf4", "bf16", "fp32"]

_WEIGHTS_SHARE = 0.55  # of the free memory that the learner's frozen weights may take without being quantized


def learner_device() -> Device:
    """Choose the device that torch trains on; accelerate's `--cpu`, or ACCELERATE_USE_CPU=true, asks for the CPU."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def learner_precision(wanted: Precision | Literal["auto"], device: Device, sixteen: int) -> Precision:
    """Choose the precision of the frozen weights: as `wanted`, or the most exact that leaves memory for all else.

    NF4 is for what would not fit otherwise, beside activations that are computed twice. It costs speed, as each matrix
    is dequantized again and again (a third of bf16's where that is native, half of fp32's elsewhere), and exactness: of
    SmolLM2-135M it moves a token's log-probability by 0.4 nats, bf16 by 0.02. The model has `sixteen` bytes in 16 bits.
    """
    if wanted != "auto":
        return wanted
    return fitting_precision(compute_in_bf16(device), sixteen, learner_free_memory(device))


def fitting_precision(in_bf16: bool, sixteen: int, free: int) -> Precision:
    """Return the precision that a device computes in natively, or NF4 where frozen weights in it take too much."""
    if (1 if in_bf16 else 2) * sixteen > _WEIGHTS_SHARE * free:
        return "nf4"
    return "bf16" if in_bf16 else "fp32"


def learner_free_memory(device: Device) -> int:
    """Count the bytes that training may still take on its device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        # It knows of this process alone, and not of what other programs, and the sampler, hold of that memory.
        return min(free_memory(), torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_memory()


def compute_in_bf16(device: Device) -> bool:
    """Say whether the device multiplies bf16 matrices natively.

    A CPU that does not emulates them: 9 times slower than fp32 on an AVX2 EPYC, 3.5 times on a Xeon with AVX-512 but
    without its BF16 part, which oneDNN's own answer does not ask for.
    """
    import torch

    if device != "cpu":  # GPUs before Ampere emulate them, too
        return device == "mps" or torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # macOS has none
    return mkldnn and (platform.machine().lower() not in ("x86_64", "amd64") or torch.cpu._is_avx512_bf16_supported())


def keep_layout(layer: Any) -> None:
    """Forbid bitsandbytes to lay a layer's weights out anew for inference on a CPU with bf16 instructions.

    It does so at the first pass without gradients, and no gradient passes through a layer laid out like that any more:
    in bitsandbytes 0.50 the updates after a scored reference then reached only the last matrix.
    """
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False
