from __future__ import annotations

import os
import subprocess
import sys

import pytest

from genius_lite.errors import UserError
from genius_lite.hardware import system
from genius_lite.hardware.system import cores, free_memory


def test_limits_of_a_container_count(monkeypatch):
    monkeypatch.setattr(system, "memory_left", lambda: 500)
    assert free_memory() == 500
    monkeypatch.setattr(system, "memory_left", lambda: None)
    assert free_memory() > 500
    own = len(os.sched_getaffinity(0))
    for share, expected in ((None, own), (1000.0, own), (1.9, 1), (0.4, 1)):
        monkeypatch.setattr(system, "processor_share", lambda share=share: share)
        assert cores() == expected


@pytest.mark.skipif(not system._glibc(), reason="malloc is not glibc's")
@pytest.mark.parametrize("first", ["spare_memory()", "pass"])
def test_memory_is_given_back(first):
    """Blocks of 8 MB with small ones between them: freed, they are returned at once, or when they are asked for."""
    code = f"""
from genius_lite.hardware.system import give_memory_back, memory_held, spare_memory
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


def test_windows_gives_no_thread_a_stack_for_any_text(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert system.with_stack(1 << 20, lambda: 1) == 1
    with pytest.raises(UserError, match="too long for Windows"):
        system.with_stack(1 << 28, lambda: 1)


def test_memory_goes_back_to_the_gpu_too(monkeypatch):
    """torch keeps what it ever took there, beside which the sampler then runs."""
    asked = []
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **options: asked.append(options))
    system.give_memory_back()
    assert asked == [{"garbage_collection": True}]
