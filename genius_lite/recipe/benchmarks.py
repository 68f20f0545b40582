"""The field's benchmarks by their names (`benchmarks.toml`): where their problems lie, and who asks and judges them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

BenchmarkName = Literal[
    "gsm8k", "math-500", "arc-challenge", "gpqa", "logiqa", "reclor", "strategyqa", "mmlu-pro", "ifeval",
]  # fmt: skip

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
BENCHMARKS: dict[BenchmarkName, dict[str, Any]] = {name: _TABLE[name]["task"] for name in get_args(BenchmarkName)}
"""What of `evaluate.tasks` a recipe need not say of them."""
HARNESS: dict[str, dict[str, Any]] = {name: of["harness"] for name, of in _TABLE.items() if "harness" in of}
"""How lm-evaluation-harness has those that it asks and judges."""

_OF_SOURCE = ("source", "subset", "split")


def benchmark_named(name: str) -> BenchmarkName | None:
    """Return the benchmark of this name, in capital or small letters."""
    return next((known for known in get_args(BenchmarkName) if known == name.casefold()), None)


def completed(written: dict[str, Any]) -> dict[str, Any]:
    """Return a task as it is written, and what it leaves out of a benchmark that it names."""
    name = benchmark_named(named) if isinstance(named := written.get("benchmark"), str) else None
    if not name:
        return written
    # Another source has parts of its own.
    known = {key: value for key, value in BENCHMARKS[name].items() if "source" not in written or key not in _OF_SOURCE}
    return {**known, **written, "benchmark": name}
