"""Tests of real models and real processes.

Of several test processes (pytest-xdist) each keeps to one core, with all that it starts: OpenMP's threads spin, and
programs of two threads each that share cores are many times slower than one after the other. Of four on two cores two
share one, for they often wait. It has to be done before anything counts cores.
"""

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
