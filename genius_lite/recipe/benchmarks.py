"""The field's benchmarks by their names: where their problems lie, and, of some, how they are asked and compared."""

from __future__ import annotations

from typing import Any, Literal, get_args

BenchmarkName = Literal[
    "gsm8k", "math-500", "arc-challenge", "gpqa", "logiqa", "reclor", "strategyqa", "mmlu-pro", "ifeval",
]  # fmt: skip

BENCHMARKS: dict[BenchmarkName, dict[str, Any]] = {
    "gsm8k": {"source": "hf:openai/gsm8k", "subset": "main"},
    "math-500": {
        "source": "hf:HuggingFaceH4/MATH-500",
        "prompt": "{problem}\n\nReason step by step, and put your final answer in \\boxed{{}}.",
        "check": "math-verify",
    },
    # lm-evaluation-harness (0.4.13) asks it in one line, with a backslash and an n for each new one.
    "arc-challenge": {
        "source": "hf:allenai/ai2_arc",
        "subset": "ARC-Challenge",
        "prompt": "question",
        "answer": "answerKey",
        "check": "choice",
    },
    # Its authors give it to whoever asks at the hub, so that its problems stay out of what is trained on.
    "gpqa": {"source": "hf:Idavidrein/gpqa", "subset": "gpqa_main", "split": "train"},
    # The English part of LogiQA's test set in AGIEval; the hub's other copies need a script, which nothing runs now.
    "logiqa": {"source": "hf:hails/agieval-logiqa-en"},
    "reclor": {
        "source": "hf:tasksource/reclor",
        "split": "validation",  # no answers to its test set are published
        "prompt": "{context}\n\n{question}",
        "choices": "answers",
        "answer": "label",
        "count_from": 0,
        "check": "choice",
    },
    "strategyqa": {"source": "hf:ChilleD/StrategyQA", "prompt": "{question}", "check": "choice"},
    "mmlu-pro": {"source": "hf:TIGER-Lab/MMLU-Pro"},
    "ifeval": {"source": "hf:google/IFEval", "split": "train"},
}
"""What of `evaluate.tasks` a recipe need not say of them; those without `check` are lm-evaluation-harness's."""

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
