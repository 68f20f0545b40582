"""The command line as a process of its own, and a recipe for a tiny model."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CompletedProcess

from tests.support import warm

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 2
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-2, batch_pairs: 2, parity_limit: 5}
sampler: {slots: 8}
"""


def genius(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, given: str = "", before: str = ""
) -> CompletedProcess[str]:
    """Run a command to its end.

    Args:
        env: its environment, if it is to have another one than this process.
        given: its standard input.
        before: Python that its process runs first.
    """
    return warm.run([*map(str, arguments)], cwd, {**os.environ} if env is None else env, given=given, before=before)
