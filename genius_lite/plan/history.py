"""What a run folder holds already: finished stages, how long they took, and what its rounds sampled.

All that the plan knows of a run folder's layout is here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from genius_lite.job import Job
from genius_lite.lines import Lines, line_bounds
from genius_lite.plan.lengths import Lengths, described
from genius_lite.plan.memory import BASE, EVALUATION, EXPORT, IMPORT, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.plan.rates import FOUND, Rates
from genius_lite.prompts import StepDelimiter, Vocabulary
from genius_lite.records import Rollout
from genius_lite.rundir import OpenRun, remove, write_json
from genius_lite.weights.importing import FULL_PRECISION

FOLDER = "rehearsal"  # in a run folder, while it is rehearsed

# Of a stage: its name in timings.jsonl, and what is there once it is finished.
_ROUND = {
    ROLLOUTS: ("rollouts", "pairs.jsonl"),
    TRAINING: ("train", "adapter"),
    QUANTIZING: ("quantize", "policy.gguf"),
    EVALUATION: ("evaluation", "evaluation"),
}
_DESCRIBED = 64  # rollouts whose lengths stand for all


@dataclass(frozen=True)
class History:
    """Hold the stages that are `done`, with their rounds: 0 before the first, the last one's number for the export.

    `seconds` are those of the finished stages of each name, `tokens` what each finished round sampled, `bytes` those on
    disk. `searched` is the number of queries that are done in a round whose rollouts are not finished.
    """

    done: frozenset[tuple[str, int]] = frozenset()
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[float] = field(default_factory=list)
    searched: dict[int, int] = field(default_factory=dict)
    bytes: int = 0

    def mean_seconds(self, stage: str) -> float | None:
        """Average the rounds so far; None if there is none."""
        known = self.seconds.get(stage)
        return sum(known) / len(known) if known else None


def look_back(out: Path, rounds: int) -> History:
    """Read a run folder, which need not exist."""
    if not (out / "recipe.json").is_file():
        return History()
    done: set[tuple[str, int]] = set()
    seconds: dict[str, list[float]] = defaultdict(list)
    tokens, searched = [], {}

    def note(stage: str, number: int, folder: Path, name: str, made: str) -> None:
        if (folder / made).exists():
            done.add((stage, number))
            seconds[stage] += timed(folder, name)[:1]

    note(IMPORT, 0, out, "import", "master")
    note(BASE, 0, out / "round-0", *_ROUND[EVALUATION])
    for number in range(1, rounds + 1):
        here = out / f"round-{number}"
        for stage, (name, made) in _ROUND.items():
            note(stage, number, here, name, made)
        if (ROLLOUTS, number) in done:
            tokens += timed(here, "rollouts")[1:]
        elif (log := here / "rollouts.jsonl").exists():
            searched[number] = len(line_bounds(log)) - 1
    if (out / "export").exists():
        done.add((EXPORT, rounds))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return History(frozenset(done), dict(seconds), tokens, searched, size)


def timed(folder: Path, name: str) -> list[float]:
    """Read the seconds and the amount of a stage; an interrupted one has several lines, one never run has none."""
    file = folder / "timings.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    found = [row for row in rows if row["stage"] == name]
    return [sum(row["seconds"] for row in found), sum(row["amount"] for row in found)] if found else []


def same_run(out: Path, identity: dict[str, Any]) -> bool:
    """Say whether the folder is free, or was made by the recipe with this identity, so that a run goes on in it."""
    recorded = out / "recipe.json"
    return not recorded.is_file() or json.loads(recorded.read_text(encoding="utf-8")) == identity


def known_lengths(job: Job, identity: dict[str, Any]) -> Lengths | None:
    """Look up how long responses are in the run's folder: of its first round, or of a rehearsal."""
    out = Path(job.recipe.out)
    if not same_run(out, identity):
        return None
    if not (out / "round-1" / "pairs.jsonl").exists():
        rates = Rates.read(out)
        return rates.lengths if rates else None
    log, candidates = out / "round-1" / "rollouts.jsonl", job.recipe.foresight.candidates
    rollouts = list(islice(Lines(log, Rollout, line_bounds(log)), _DESCRIBED))
    with Vocabulary.open(job.source.path) as vocabulary:
        return described(rollouts, StepDelimiter(vocabulary.pieces), candidates, "round 1")


def cut_off(job: Job) -> str | None:
    """Warn that too many responses are cut off, by what the run's folder knows of them."""
    lengths = known_lengths(job, job.identity())
    return lengths.cut_off(job.recipe.foresight.max_tokens) if lengths else None


def drop_rehearsal(out: Path, identity: dict[str, Any]) -> None:
    """Remove what an interrupted rehearsal left, and rehearsals of other recipes: a plan binds nobody.

    A folder that holds nothing but another recipe's becomes this one's. The import stays if the model is the same.

    Raises:
        UserError: the folder is in use, or has a link in it.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
    imported = {"master", FULL_PRECISION, "timings.jsonl"}
    same, planned = same_run(out, identity), names & {FOLDER, FOUND}
    if FOLDER not in names if same else not planned or names - planned - imported - {"recipe.json", "lock"}:
        return
    recorded = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    another = any(recorded.get(key) != identity[key] for key in ("model", "weights"))
    with OpenRun(out, recorded) as folder:
        for name in [FOLDER, *([] if same else [FOUND]), *(imported if another else [])]:
            remove(folder / name)
        write_json(folder / "recipe.json", identity, indent=2)
