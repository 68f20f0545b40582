from __future__ import annotations

import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genius_lite.hardware import device
from genius_lite.hardware.device import fitting_precision
from genius_lite.learner.model import load_base


@pytest.mark.parametrize(
    ("native", "free", "expected"),
    [(True, 1.9e9, "bf16"), (True, 1.8e9, "nf4"), (False, 3.7e9, "fp32"), (False, 3.6e9, "nf4")],
)
def test_weights_are_quantized_only_where_they_would_take_too_much_memory(monkeypatch, native, free, expected):
    monkeypatch.setattr(device, "compute_in_bf16", lambda _: native)
    monkeypatch.setattr(device, "learner_free_memory", lambda _: free)
    assert device.learner_precision("auto", "cpu", sixteen=10**9) == expected
    assert device.learner_precision("bf16", "cpu", sixteen=10**9) == "bf16"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="asks Linux on x86")
def test_bf16_is_native_where_the_processor_says_so():
    """AVX-512 alone is not enough: there oneDNN multiplies bf16 matrices slower than fp32 ones."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags
    assert device.compute_in_bf16("cpu") == ("avx512_bf16" in flags[1].split())


def test_a_torch_without_onednn_computes_in_fp32(monkeypatch):
    """As in the wheels for macOS: it was an AttributeError, after the first round was sampled."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not device.compute_in_bf16("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bf16_is_no_native_one(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert device.compute_in_bf16("cuda") == native
    assert device.compute_in_bf16("mps")


def test_torch_takes_no_more_threads_than_a_container_has_cores(tiny, monkeypatch):
    """libgomp, which decides for torch, knows nothing of a quota."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("genius_lite.learner.model.cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        load_base(tiny.hf_checkpoint, "cpu", "fp32")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("in_bf16", "sixteen", "free", "expected"),
    [(True, 220, 400, "bf16"), (True, 221, 400, "nf4"), (False, 110, 400, "fp32"), (False, 111, 400, "nf4")],
)
def test_the_most_exact_precision_that_fits(in_bf16, sixteen, free, expected):
    # 55 % of the free memory is for the weights; fp32 takes twice the 16 bits.
    assert fitting_precision(in_bf16, sixteen, free) == expected


def test_metals_memory_is_what_others_leave_of_the_systems(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1_000)
    for free, expected in ((3_000, 3_000), (50_000, 11_000)):
        monkeypatch.setattr(device, "free_memory", lambda free=free: free)
        assert device.learner_free_memory("mps") == expected
