from __future__ import annotations

import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genius_lite import hardware
from genius_lite.learner.model import load_base


@pytest.mark.parametrize(
    ("native", "free", "expected"),
    [(True, 1.9e9, "bf16"), (True, 1.8e9, "nf4"), (False, 3.7e9, "fp32"), (False, 3.6e9, "nf4")],
)
def test_weights_are_quantized_only_where_they_would_take_too_much_memory(monkeypatch, native, free, expected):
    monkeypatch.setattr(hardware, "compute_in_bf16", lambda device: native)
    monkeypatch.setattr(hardware, "learner_free_memory", lambda device: free)
    assert hardware.learner_precision("auto", "cpu", sixteen=10**9) == expected
    assert hardware.learner_precision("bf16", "cpu", sixteen=10**9) == "bf16"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="asks Linux on x86")
def test_bf16_is_native_where_the_processor_says_so():
    """AVX-512 alone is not enough: there oneDNN multiplies bf16 matrices slower than fp32 ones."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags
    assert hardware.compute_in_bf16("cpu") == ("avx512_bf16" in flags[1].split())


def test_a_torch_without_onednn_computes_in_fp32(monkeypatch):
    """As in the wheels for macOS: it was an AttributeError, after the first round was sampled."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not hardware.compute_in_bf16("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bf16_is_no_native_one(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
    assert hardware.compute_in_bf16("cuda") == native
    assert hardware.compute_in_bf16("mps")


def test_memory_goes_back_to_the_gpu_too(monkeypatch):
    """torch keeps what it ever took there, beside which the sampler then runs."""
    asked = []
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **options: asked.append(options))
    hardware.give_memory_back()
    assert asked == [{"garbage_collection": True}]


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
