"""Products of bf16 numbers that are summed up and kept in fp32, on a CPU that multiplies bf16 natively.

torch gives a product of bf16 matrices in bf16 there, and one of fp32 matrices takes four times as long. oneDNN can do
what lies between, if it is allowed to round the factors: of numbers that bf16 has, nothing is lost by that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

from genius_lite.hardware.device import compute_in_bf16


def factors_in_bf16(allowed: bool = True) -> AbstractContextManager[None]:
    """Have products of fp32 matrices on a CPU round their factors to bf16 inside, if `allowed` and quicker there."""
    return _rounded_factors() if allowed and _sums_in_fp32() else nullcontext()


@contextmanager
def _rounded_factors() -> Iterator[None]:
    options = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before, options.fp32_precision = options.fp32_precision, "bf16"
    try:
        yield
    finally:
        options.fp32_precision = before


@cache
def _sums_in_fp32() -> bool:
    """Try whether this CPU multiplies bf16 natively, and torch (2.9 and later) has it sum up in fp32."""
    if not (compute_in_bf16("cpu") and hasattr(torch.backends.mkldnn, "matmul")):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 256, generator=generator).bfloat16().float() for _ in range(2))
    with _rounded_factors():
        return torch.allclose(a @ b.T, (a.double() @ b.T.double()).float(), atol=1e-3)
