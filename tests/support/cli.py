"""The command line as a process of its own, and a recipe for a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 2
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-2, batch_pairs: 2, parity_limit: 5}
sampler: {slots: 8}
"""


def genius(*arguments, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)
