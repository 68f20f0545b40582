from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from genius_lite import gpus as llama_gpus
from genius_lite import hardware
from genius_lite.errors import UserError
from genius_lite.gpus import gpus
from genius_lite.hardware import cores, fitting_precision, free_memory


@pytest.mark.parametrize(
    ("in_bf16", "sixteen", "free", "expected"),
    [(True, 220, 400, "bf16"), (True, 221, 400, "nf4"), (False, 110, 400, "fp32"), (False, 111, 400, "nf4")],
)
def test_the_most_exact_precision_that_fits(in_bf16, sixteen, free, expected):
    # 55 % of the free memory is for the weights; fp32 takes twice the 16 bits.
    assert fitting_precision(in_bf16, sixteen, free) == expected


def test_limits_of_a_container_count(monkeypatch):
    monkeypatch.setattr(hardware, "memory_left", lambda: 500)
    assert free_memory() == 500
    monkeypatch.setattr(hardware, "memory_left", lambda: None)
    assert free_memory() > 500
    own = len(os.sched_getaffinity(0))
    for share, expected in ((None, own), (1000.0, own), (1.9, 1), (0.4, 1)):
        monkeypatch.setattr(hardware, "processor_share", lambda share=share: share)
        assert cores() == expected


@pytest.mark.skipif(not hardware._glibc(), reason="malloc is not glibc's")
@pytest.mark.parametrize("first", ["spare_memory()", "pass"])
def test_memory_is_given_back(first):
    """Blocks of 8 MB with small ones between them: freed, they are returned at once, or when they are asked for."""
    code = f"""
from genius_lite.hardware import give_memory_back, memory_held, spare_memory
import ctypes
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def block(size):
    at = libc.malloc(size)
    ctypes.memset(at, 1, size)
    return at
for _ in range(3):  # teaches malloc to keep blocks of this size
    libc.free(block(30_000_000))
give_memory_back()
before = memory_held()[0]
blocks = [(block(8_000_000), block(200_000)) for _ in range(10)]
full = memory_held()[0]
for large, _ in blocks:  # what stays between them would fit into no hole that was there before
    libc.free(large)
kept = memory_held()[0]
give_memory_back()
print(full - before, kept - before, memory_held()[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    full, kept, left = map(int, done.stdout.split())
    assert full > 79_000_000
    assert left < 10_000_000
    assert (kept < 10_000_000) == (first == "spare_memory()")


def test_on_windows_ggml_is_loaded_once(monkeypatch):
    """There llama-cpp-python lengthens PATH by its folder at each loading, until Windows takes no more."""
    from llama_cpp import _ctypes_extensions, llama_cpp

    loaded = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(
        _ctypes_extensions, "load_shared_library", lambda name, _: loaded.append(name) or llama_cpp._lib
    )
    llama_gpus._libraries.cache_clear()
    try:
        for _ in range(3):
            gpus()
    finally:
        llama_gpus._libraries.cache_clear()
    assert loaded == ["ggml", "ggml-base"]


def test_of_gpus_those_with_memory_of_their_own_count_and_shared_memory_is_the_systems(monkeypatch):
    """llama.cpp uses an integrated one only where there is no other; what it calls free, others may hold."""

    def found(*devices: tuple[int, int]) -> list[llama_gpus.Gpu]:
        def function(name, result, arguments):
            def memory(device, free, total):
                free._obj.value = devices[device][1]

            return {
                "backend_dev_count": lambda: len(devices),
                "backend_dev_get": lambda n: n,
                "backend_dev_type": lambda n: devices[n][0],
                "backend_dev_description": lambda n: f"device {n}".encode(),
                "backend_dev_memory": memory,
            }[name]

        monkeypatch.setattr(llama_gpus, "ggml_function", function)
        return llama_gpus.gpus()

    monkeypatch.setattr(llama_gpus, "free_memory", lambda: 3_000)
    assert found((0, 1), (1, 8_000), (2, 16_000)) == [llama_gpus.Gpu("device 1", 8_000, room=8_000)]
    assert found((2, 16_000)) == [llama_gpus.Gpu("device 0", 3_000, shared=True, room=16_000)]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found((1, 11_000)) == [llama_gpus.Gpu("device 0", 3_000, shared=True, room=11_000)]


def test_metals_memory_is_what_others_leave_of_the_systems(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1_000)
    for free, expected in ((3_000, 3_000), (50_000, 11_000)):
        monkeypatch.setattr(hardware, "free_memory", lambda free=free: free)
        assert hardware.learner_free_memory("mps") == expected


def test_windows_gives_no_thread_a_stack_for_any_text(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert hardware.with_stack(1 << 20, lambda: 1) == 1
    with pytest.raises(UserError, match="too long for Windows"):
        hardware.with_stack(1 << 28, lambda: 1)
