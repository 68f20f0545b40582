"""The program's probe of a file, which fails if it took too much memory."""

from __future__ import annotations

import sys

from genius_lite.sampler.probe import main
from tests.faults.child import BOUND, memory

if __name__ == "__main__":
    try:
        main()
    finally:
        if (peak := memory("VmHWM")) > int(sys.argv[2]) + BOUND:
            raise RuntimeError(f"the probe took {peak / 1e6:.0f} MB")
