"""Kill a run at random moments until it is done, again and again; then look at what it left behind.

    python -m tests.faults.kills --kills 200 --seed 0

Each run of a tiny model is started, killed after a random time (SIGKILL to the run itself, or to its sampler, which it
has to survive), or suspended for a moment, and started again until it ends by itself. Then every query has one rollout,
and those that are held out have none; records are whole, nothing half built is left, and the adapter is bit for bit
what uninterrupted training makes of the same rollouts. Random times follow the machine, so that a run is harmed a few
times. The last line is one JSON object; `stages` says where the run stood when it or its sampler was killed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
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
from genius_lite.report.status import read_state
from genius_lite.rundir.lines import read_records
from genius_lite.weights import gguf_file
from tests.support.models import tiny_gguf

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 1
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-3, batch_pairs: 1, epochs: 3, parity_limit: 5, precision: fp32, save_every: 0}
quantize: {type: Q8_0}
sampler: {slots: 8, threads: 1}
evaluate: {queries: 4, query_samples: 2}
"""
QUERIES = [f"question {n}" for n in range(24)]
_CFG = parse(RECIPE)
HELD_OUT = hold_out([query_id(q) for q in QUERIES], _CFG.learner.holdout, _CFG.seed, _CFG.evaluate.queries)
SEARCHED = {query for query in QUERIES if query_id(query) not in HELD_OUT}
COMMAND = [sys.executable, "-c", "from genius_lite.cli import main; main()", "run", "r.yaml", "--out", "run"]
_SPAN = 5.0  # seconds in which the first run is harmed, after each start
_WANTED = range(3, 7)  # kills in a run; with fewer or more the next one has a shorter or longer span
_EARLY = 0.1  # of the starts, that are harmed from the first moment, before anything is under way
_HARMS = {"run": 6, "sampler": 3, "suspend": 1}  # how often each, to the others
_BUILT_FROM = ("recipe.json", "hf-checkpoint", "round-0")
_SAMPLED = ("rollouts.jsonl", "failed.jsonl", "pairs.jsonl", "filtered.json")


@dataclass
class Tally:
    """What was done, and what was found wrong."""

    kills: int = 0
    sampler_kills: int = 0
    suspensions: int = 0
    runs: int = 0
    records_lost: int = 0
    records_doubled: int = 0
    damaged: int = 0
    adapters_that_differ: int = 0
    unexpected_ends: int = 0
    stages: dict[str, int] = field(default_factory=dict)

    @property
    def killed(self) -> int:
        """Runs and samplers."""
        return self.kills + self.sampler_kills

    def struck(self, stage: str) -> None:
        """Count where a kill struck."""
        self.stages[stage] = self.stages.get(stage, 0) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(json.dumps(many_runs(a.kills, a.seed)))


def many_runs(kills: int, seed: int) -> dict[str, Any]:
    """Runs one after the other until so many were killed, or had their sampler killed; all that was counted."""
    tally, draw, span, start = Tally(), random.Random(seed), _SPAN, time.monotonic()
    while tally.killed < kills:
        before = tally.killed
        with tempfile.TemporaryDirectory() as folder:
            one_run(Path(folder), draw, tally, span)
        harmed = tally.killed - before
        span *= 0.9 if harmed < _WANTED.start else 1.1 if harmed >= _WANTED.stop else 1
        print(json.dumps(asdict(tally)), flush=True)
    return {**asdict(tally), "seconds": round(time.monotonic() - start)}


def one_run(project: Path, draw: random.Random, tally: Tally, span: float, at_most: int = 20) -> None:
    """One run through all its kills (`at_most` so many, then it is let alone), and the look at what it left."""
    lay_out(project)
    for attempt in range(at_most + 1):
        process = subprocess.Popen(COMMAND, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if attempt < at_most:
            _harm(process, project, draw, span, tally)
        said, _ = process.communicate()
        if process.returncode == -signal.SIGKILL:
            continue
        if process.returncode:
            tally.unexpected_ends += 1
            print(said, file=sys.stderr)
        break
    tally.runs += 1
    look(project, tally)


def lay_out(project: Path) -> None:
    """A recipe, its queries and its model."""
    tiny_gguf(project / "tiny.gguf", "llama")
    (project / "q.txt").write_text("\n".join(QUERIES))
    (project / "r.yaml").write_text(RECIPE)


def _harm(process: subprocess.Popen[str], project: Path, draw: random.Random, span: float, tally: Tally) -> None:
    """After random times kill the sampler that the run has just then, or suspend the run, until it is killed itself."""
    early = draw.random() < _EARLY
    while not early and process.poll() is None and not _stage(process, project / "run"):
        time.sleep(0.05)
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, span))
            return
        (kind,) = draw.choices([*_HARMS], [*_HARMS.values()])
        with suppress(psutil.NoSuchProcess):
            run = psutil.Process(process.pid)
            stage = _stage(process, project / "run") or "start"
            samplers = [p for p in run.children(recursive=True) if "genius_lite.sampler.worker" in p.cmdline()]
            if kind == "run":
                run.kill()
                tally.kills += 1
                tally.struck(stage)
                return
            if kind == "sampler" and samplers:
                samplers[0].kill()
                tally.sampler_kills += 1
                tally.struck(stage)
            elif kind == "suspend":
                run.suspend()
                time.sleep(1)
                run.resume()
                tally.suspensions += 1


def _stage(process: subprocess.Popen[str], run: Path) -> str:
    """The stage that this process is in; empty while it has shown none."""
    board = read_state(run)
    return board.kind if board and board.pid == process.pid else ""


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
    left = [p for p in run.rglob("*") if ".partial" in p.name]
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
    subprocess.run([*COMMAND[:-1], "whole"], cwd=project, check=True, capture_output=True)
    adapter = Path("round-1", "adapter", "adapter_model.safetensors")
    tally.adapters_that_differ += (run / adapter).read_bytes() != (project / "whole" / adapter).read_bytes()


if __name__ == "__main__":
    main()
