"""Tests of real models and real processes.

Of several test processes (pytest-xdist) each keeps to a core of its own, with all that it starts: OpenMP's threads
spin, and two programs that share cores are many times slower than one after the other. It has to be done before
anything counts cores.
"""

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
