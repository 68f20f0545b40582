"""The recipe that the answers make, with comments."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from genius_lite.interview.machine import Fit, Machine, duration
from genius_lite.recipe import TaskSource

_PLAIN = re.compile(r"[A-Za-z0-9_./~-][\w./~:-]*")
_RESERVED = re.compile(r"(?:null|true|false|yes|no|on|off|y|n|~|[-+.\d_]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answers:
    """What a recipe is written from. `available` questions are there, None if they were not counted."""

    model: str
    source: str
    column: str
    questions: int
    available: int | None
    task: TaskSource | None
    kind: str


def recipe_text(answers: Answers, cfg: Fit, machine: Machine, seconds: float, out: Path) -> str:
    """A recipe for `out`, beside which its files are looked for."""
    lines = [
        f"# Written by genius-lite init, for {machine}.",
        f"# About {duration(seconds)}, roughly. Every key: genius-lite reference",
        f"# genius-lite validate {out}; genius-lite run {out}",
        "",
        "model:",
        f"  gguf: {_word(_beside(answers.model, out))}",
        "",
        "queries:",
        f"  source: {_word(_beside(answers.source, out))}   # questions; answers in it are not looked at",
        f"  column: {_word(answers.column)}",
        f"  limit: {answers.questions}   # {_limit(answers)}",
        "  shuffle: true",
        "  # system: Reason in a few short sentences, then answer.   # before every question, in later use too",
        "",
        f"rounds: {cfg.rounds}   # sample, learn, re-quantize; later rounds sample from what was learned",
        "",
        "foresight:",
        f"  beams: {cfg.beams}          # partial responses that are kept",
        f"  candidates: {cfg.candidates}     # next steps sampled from each",
        f"  steps: {cfg.steps}          # lines that are searched; the paper has 4",
        f"  max_tokens: {cfg.max_tokens}   # longest response; raise it if many are cut off",
        "  temperature: 1.0  # the paper has 0.6, with which small models learned nothing that showed",
        "",
        "pairs:",
        "  negatives: uniform   # the paper draws them from F, where they are nearly as good as what is preferred",
        "  min_gap: 0.05        # nats per token between the two",
        "  truncated: chosen    # what comes to no end is never preferred",
        "",
        "learner:",
        f"  lr: {cfg.lr}          # halve it if the collapse guard warns",
        f"  batch_pairs: {cfg.batch_pairs}",
        f"  max_pack_tokens: {cfg.max_pack_tokens}   # less takes less memory",
        "",
        "quantize:",
        f"  type: {answers.kind}   # {_kind(answers.kind)}",
        "",
        "sampler: auto   # slots, KV buffers and threads are measured here, once for the model",
        "",
        *_evaluate(answers.task, out),
    ]
    return "\n".join(lines) + "\n"


def _limit(answers: Answers) -> str:
    return f"of {answers.available}; time grows with it" if answers.available else "time grows with it"


def _kind(kind: str) -> str:
    if kind == "source":
        return "as the model's own; Q8_0, Q4_K_M and others can be named"
    return "of the GGUF that is sampled from, and of the result"


def _evaluate(task: TaskSource | None, out: Path) -> list[str]:
    if task is None:
        return [
            "# Without problems whose answers are known, rounds are compared by how far answers agree. With some:",
            "# evaluate:",
            "#   tasks:",
            "#     - {source: held-out.jsonl, check: numeric}   # rows with `prompt` and `answer`",
        ]
    said = {key: value for key, value in task.model_dump(exclude_defaults=True).items() if key != "source"}
    return [
        "evaluate:",
        "  tasks:   # the base model and every round answer them; nothing learns from them",
        f"    - source: {_word(_beside(task.source, out))}",
        *(f"      {key}: {_word(str(value))}" for key, value in said.items()),
        *([] if "size" in said or "limit" in said else [_shorter(task)]),
        "  samples: 2    # responses to each at the temperature of later use, beside the likeliest one",
        "  patience: 1   # stop after a round that is worse, by the interval of the difference",
    ]


def _shorter(task: TaskSource) -> str:
    key = "size" if task.source.startswith("reasoning_gym:") else "limit"
    return f"      {key}: 100   # problems; more tell smaller differences, and take longer"


def _beside(source: str, out: Path) -> str:
    """A source as the recipe at `out` writes it."""
    if re.match(r"(?:hf|python|reasoning_gym):", source):
        return source
    path, folder = Path(source).absolute(), out.parent.absolute()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)


def _word(text: str) -> str:
    """Text as YAML reads it back."""
    plain = _PLAIN.fullmatch(text) and not _RESERVED.fullmatch(text) and not text.endswith(":")
    return text if plain else json.dumps(text, ensure_ascii=False)
