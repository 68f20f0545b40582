"""Kill a run in each of its stages until it is done, again and again; then look at what it left behind.

    python -m tests.faults.kills --kills 500 --seed 0 [--counts F.json --minutes 3]

Each run of a tiny model is harmed as often in every stage, after a random part of the time that the stage takes here:
the run itself is killed (SIGKILL), or a helper (its sampler), which it has to survive; it is suspended for a moment; or
no file may grow any more, as on a full disk. Every second run has a file system that refuses what some do: hard links,
locks, modes, `fsync` of folders, free bytes. It is started again until it ends by itself. Then every query has one
rollout, and those that are held out have none; records are whole, nothing half built is left, and the adapter is bit
for bit what uninterrupted training makes of the same rollouts. The last line is one JSON object; `stages` says where
harm struck.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from genius_lite.data.queries import hold_out
from genius_lite.errors import UserError
from genius_lite.recipe.reader import parse
from genius_lite.records import PreferencePair, Rollout, query_id
from genius_lite.rundir.lines import read_records
from genius_lite.weights import gguf_file
from tests.faults.refusals import REFUSALS, refusing
from tests.faults.stages import COMMAND, HANGS, Process, stage_seconds
from tests.support import warm
from tests.support.models import tiny_gguf

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 1
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-3, batch_pairs: 2, epochs: 2, parity_limit: 5, precision: fp32, save_every: 0}
quantize: {type: Q8_0}
sampler: {slots: 8, threads: 1}
evaluate: {queries: 4, query_samples: 2}
"""
QUERIES = [f"question {n}" for n in range(24)]


def searched(queries: list[str]) -> set[str]:
    """Tell which queries a run of these searches; the others are held out."""
    cfg = parse(RECIPE)
    held_out = hold_out([query_id(q) for q in queries], cfg.learner.holdout, cfg.seed, cfg.evaluate.queries)
    return {query for query in queries if query_id(query) not in held_out}


SEARCHED = searched(QUERIES)
_EARLY = 0.3  # of a stage's time, in which every second harm is done: after it the stage may be over
_MOST = 60  # harms to one run, then it is let alone
_EACH = 3  # harms to each stage of one run
_HARMS = {"kill": 5, "disk": 3, "sampler": 2, "suspend": 1}  # how often each, to the others
_SAMPLING = ("evaluate", "rollouts")  # stages with helpers: the sampler, and what tries a file before it does
_FULL = ("error: file too large", "0.0 GB are free: make room")
_NOT_TO_STAY = (".partial", ".new", ".genius-lite-tmp", "lock.held")
_BUILT_FROM = ("recipe.json", "hf-checkpoint", "round-0")
_SAMPLED = ("rollouts.jsonl", "failed.jsonl", "pairs.jsonl", "filtered.json")


@dataclass
class Tally:
    """What was done, and what was found wrong."""

    kills: int = 0
    full_disks: int = 0
    sampler_kills: int = 0
    suspensions: int = 0
    refusing: int = 0
    runs: int = 0
    records_lost: int = 0
    records_doubled: int = 0
    damaged: int = 0
    adapters_that_differ: int = 0
    unexpected_ends: int = 0
    tracebacks: int = 0
    seconds: float = 0.0
    stages: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def harmed(self) -> int:
        """Runs and samplers that were killed, and disks that were full."""
        return self.kills + self.sampler_kills + self.full_disks

    @property
    def wrong(self) -> int:
        """What there must be none of."""
        found = (self.records_lost, self.records_doubled, self.damaged, self.adapters_that_differ)
        return sum(found) + self.unexpected_ends + self.tracebacks


_COUNTED = {"kill": "kills", "disk": "full_disks", "sampler": "sampler_kills"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no other run after so long")
    parser.add_argument("--counts", type=Path, help="a file that has the counts after every run, and is gone on from")
    a = parser.parse_args()
    found = many_runs(a.kills, a.seed, a.minutes, a.counts)
    print(json.dumps(found))


def many_runs(kills: int, seed: int, minutes: float = math.inf, counts: Path | None = None) -> dict[str, Any]:
    """Runs one after the other until so many harms were done; all that was counted."""
    tally, start = Tally(), time.monotonic()
    if counts and counts.exists():
        tally = Tally(**json.loads(counts.read_text()))
    before = tally.seconds
    if not tally.stage_seconds:
        with tempfile.TemporaryDirectory() as folder:
            lay_out(Path(folder))
            tally.stage_seconds = stage_seconds(Path(folder))
    while tally.harmed < kills and time.monotonic() - start < minutes * 60:
        with tempfile.TemporaryDirectory() as folder:
            draw = random.Random(f"{seed} {tally.runs}")
            each = min((tally.runs + 1) * _EACH, math.ceil(kills / len(tally.stage_seconds)))
            one_run(Path(folder), draw, tally, tally.stage_seconds, each, refuse=tally.runs % 2 == 1)
        tally.seconds = round(before + time.monotonic() - start)
        print(json.dumps(asdict(tally)), flush=True)
        if counts:
            counts.write_text(json.dumps(asdict(tally)) + "\n")
    return asdict(tally)


def one_run(
    project: Path,
    draw: random.Random,
    tally: Tally,
    seconds: dict[str, float],
    each: int,
    *,
    refuse: bool = False,
    at_most: int = _MOST,
) -> None:
    """One run through all its harms (`at_most` so many, then it is let alone), and the look at what it left.

    Args:
        seconds: that each stage takes, in their order.
        each: stages that were harmed so often are let alone.
        refuse: give it a file system that refuses what some do.
    """
    lay_out(project)
    refused, stages, ahead, harms, harm = refusing(*REFUSALS) if refuse else "", list(seconds), 0, 0, None
    tally.refusing += refuse
    while True:
        process, harm = Process(project, refused), None
        while harms < at_most and (harm is None or not harm.ends):
            wanted = next((stage for stage in stages[ahead:] if tally.stages.get(stage, 0) < each), None)
            if not wanted or not (reached := process.reach(wanted, stages)):
                break
            harm = _harm(process, draw, reached, seconds[reached])
            ahead, harms = stages.index(harm.stage), harms + 1
            if harm.kind == "sampler":
                _count(tally, harm)
            tally.suspensions += harm.kind == "suspend"
        code, said = process.end(), "".join(process.said)
        if not code:
            break
        if not harm or not _is_of(harm, code, said):
            tally.tracebacks += "Traceback" in said
            tally.unexpected_ends += 1
            print(f"ended with {code} after {harm}: {said}", file=sys.stderr)
            return
        _count(tally, harm)
    tally.runs += 1
    look(project, tally)


@dataclass(frozen=True)
class Harm:
    """What was done to a run, and where it stood; of no kind if it had ended. `ends` says whether it ends by that."""

    kind: str
    stage: str

    @property
    def ends(self) -> bool:
        return self.kind in ("kill", "disk")


def _count(tally: Tally, harm: Harm) -> None:
    name = _COUNTED[harm.kind]
    setattr(tally, name, getattr(tally, name) + 1)
    tally.stages[harm.stage] = tally.stages.get(harm.stage, 0) + 1


def _is_of(harm: Harm, code: int, said: str) -> bool:
    """Say whether a run ended as one does that was harmed like this: without a word, or with one line."""
    if harm.kind == "kill":
        return code == -signal.SIGKILL and HANGS not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    full = [line for line in lines if any(words in line for words in _FULL)]
    return code == 2 and len(lines) == len(full) == 1 and "Traceback" not in said


def lay_out(project: Path) -> None:
    """A recipe, its queries and its model."""
    tiny_gguf(project / "tiny.gguf", "llama")
    (project / "q.txt").write_text("\n".join(QUERIES))
    (project / "r.yaml").write_text(RECIPE)


def _harm(process: Process, draw: random.Random, stage: str, seconds: float) -> Harm:
    """Do some harm to a run within the time that its stage takes."""
    (kind,) = draw.choices([*_HARMS], [*_HARMS.values()])
    with suppress(psutil.NoSuchProcess):
        run = psutil.Process(process.pid)
        time.sleep(draw.uniform(0, seconds) * draw.choice((_EARLY, 1)))
        struck = process.stage
        if kind == "suspend":
            run.suspend()
            time.sleep(0.5)
            run.resume()
        elif kind == "disk":
            run.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
        elif kind == "sampler" and struck.endswith(_SAMPLING) and (helpers := run.children()):
            helpers[0].kill()
        else:
            kind = "kill"
            run.kill()
        return Harm(kind, struck)
    return Harm("", stage)


def look(project: Path, tally: Tally) -> None:
    """At what a finished run left behind, set beside one that uninterrupted training makes of the same rollouts."""
    run = project / "run"
    here = run / "round-1"
    try:
        rollouts = read_records(here / "rollouts.jsonl", Rollout)
        read_records(here / "pairs.jsonl", PreferencePair)
        for file in run.rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
        for file in run.rglob("*.gguf"):
            gguf_file.read(file)
    except (UserError, ValueError, OSError) as e:
        tally.damaged += 1
        print(f"damaged: {e!r}", file=sys.stderr)
        return
    left = [p for p in run.rglob("*") if any(word in p.name for word in _NOT_TO_STAY)]
    tally.damaged += bool(left)
    if left:
        print(f"left behind: {left}", file=sys.stderr)
    asked = [r.query.prompt for r in rollouts]
    tally.records_lost += len(SEARCHED ^ set(asked))
    tally.records_doubled += len(asked) - len(set(asked))
    shutil.copytree(run, project / "whole", ignore=lambda _, names: names)
    for name in _BUILT_FROM:
        source = run / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, project / "whole" / name)
    (project / "whole" / "round-1").mkdir()
    for name in _SAMPLED:
        if (here / name).exists():
            shutil.copyfile(here / name, project / "whole" / "round-1" / name)
    ended = warm.run([*COMMAND[:-1], "whole"], project, {**os.environ})
    assert ended.returncode == 0, ended.stderr
    adapter = Path("round-1", "adapter", "adapter_model.safetensors")
    tally.adapters_that_differ += (run / adapter).read_bytes() != (project / "whole" / adapter).read_bytes()


if __name__ == "__main__":
    main()
