"""What a run folder already holds: finished stages, how long they took, and the responses of its first round."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genius_lite.planning.memory import BASE, EVALUATION, EXPORT, IMPORT, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.probe import Probe, described
from genius_lite.prompts import StepDelimiter
from genius_lite.records import Rollout, Step
from genius_lite.rundir import read_records

Stage = tuple[str, int]
"""A stage's name and its round: 0 of what comes before the first, the last one of the export."""

_NOTED = {"rollouts": ROLLOUTS, "train": TRAINING, "quantize": QUANTIZING, "evaluation": EVALUATION}
# What is there once a stage of a round is finished; one of them suffices.
_MADE = {
    ROLLOUTS: ("pairs.jsonl",),
    TRAINING: ("adapter",),
    QUANTIZING: ("policy.gguf",),
    EVALUATION: ("evaluation",),
}


@dataclass(frozen=True)
class Earlier:
    """`seconds` of the finished stages of each name, `tokens` that each finished round sampled; `bytes` on disk.

    `searched` is the number of queries that are done in a round whose rollouts are not finished.
    """

    done: frozenset[Stage] = frozenset()
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    searched: dict[int, int] = field(default_factory=dict)
    bytes: int = 0

    def mean_seconds(self, stage: str) -> float | None:
        """Of the rounds so far; None if there is none."""
        known = self.seconds.get(stage)
        return sum(known) / len(known) if known else None


def look_back(out: Path, rounds: int) -> Earlier:
    """At a run folder, which need not exist."""
    if not (out / "recipe.json").is_file():
        return Earlier()
    done: set[Stage] = set()
    seconds: dict[str, list[float]] = defaultdict(list)
    tokens, searched = [], {}
    if (out / "hf-checkpoint").exists():
        done.add((IMPORT, 0))
        seconds[IMPORT] += _noted(out, "import")
    if (out / "round-0" / "evaluation").exists():
        done.add((BASE, 0))
        seconds[BASE] += _noted(out / "round-0", "evaluation")
    for number in range(1, rounds + 1):
        here = out / f"round-{number}"
        for name, stage in _NOTED.items():
            if any((here / made).exists() for made in _MADE[stage]):
                done.add((stage, number))
                seconds[stage] += _noted(here, name)
        log = here / "rollouts.jsonl"
        if (ROLLOUTS, number) in done:
            tokens.append(sum(rollout.sampled_tokens for rollout in read_records(log, Rollout)))
        elif log.exists():
            searched[number] = log.read_bytes().count(b"\n")
    if (out / "export").exists():
        done.add((EXPORT, rounds))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Earlier(frozenset(done), dict(seconds), tokens, searched, size)


def same_run(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder was made by the recipe with this identity, so that a run would go on in it."""
    recorded = out / "recipe.json"
    return not recorded.is_file() or json.loads(recorded.read_text(encoding="utf-8")) == identity


def probe_of(out: Path, delimiter: StepDelimiter, candidates: int) -> Probe | None:
    """The responses of the first round, if it is finished; the candidates of its first step are complete ones.

    Args:
        candidates: of each beam, the recipe's.
    """
    if not (out / "round-1" / "pairs.jsonl").exists():
        return None
    rollouts = read_records(out / "round-1" / "rollouts.jsonl", Rollout)
    found = described([[c.tokens for c in r.steps[0].candidates] for r in rollouts], delimiter, "round 1")
    first = _chance([r.steps[0] for r in rollouts], candidates)
    later = _chance([step for r in rollouts for step in r.steps[1:]], candidates)
    return Probe(found.responses, first, found.source, later)


def _chance(steps: Sequence[Step], candidates: int) -> float:
    """That two candidates of a beam are the same: on average each had (candidates - 1) / 2 before it to repeat."""
    repeated = sum(step.duplicates for step in steps)
    every = repeated + sum(len(step.candidates) for step in steps)
    return min(1.0, repeated / every / max(0.5, (candidates - 1) / 2)) if every else 0.0


def _noted(here: Path, stage: str) -> Iterable[float]:
    """The seconds of a stage, in a list of one; an interrupted one has several lines."""
    file = here / "timings.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    found = [row["seconds"] for row in rows if row["stage"] == stage]
    return [sum(found)] if found else []
