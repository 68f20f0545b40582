"""A process that stands still: stopped, and seen to be."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stop(pid: int, seconds: float = 10.0) -> None:
    """Stop a process (SIGSTOP) and wait until each of its threads stands.

    The signal is delivered when the process next enters the kernel: until then it may still answer.
    Raises TimeoutError where it still runs after so many seconds.
    """
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + seconds
    while not all(_state(task) in "Tt" for task in Path(f"/proc/{pid}/task").iterdir()):
        if time.monotonic() > end:
            raise TimeoutError(f"process {pid} still runs {seconds:g} s after SIGSTOP")
        time.sleep(0.001)


def _state(task: Path) -> str:
    """Return the letter of a thread's state (proc(5)); the name before it may hold brackets and spaces."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
