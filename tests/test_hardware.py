from __future__ import annotations

import subprocess
import sys

from genius_lite.hardware import peak_memory


def test_peak_memory_is_the_processes_own_and_grows_with_what_it_holds():
    held = bytearray(300_000_000)
    held[::4096] = b"x" * len(held[::4096])  # every page, so that it is really there
    assert peak_memory() > 300_000_000
    code = "from genius_lite.hardware import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < 150_000_000, "a child does not hold what its parent held"
