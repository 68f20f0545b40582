"""Kill a run in each of its stages until it is done, again and again; then look at what it left behind.

    python -m tests.faults.kills --kills 200 --seed 0

Each run of a tiny model is harmed in the stage that was harmed least so far, after a random part of the time that the
stage takes here: the run itself is killed (SIGKILL), or its sampler, which it has to survive; it is suspended for a
moment; or no file may grow any more, as on a full disk. Every second run has a file system that refuses what some do:
hard links, locks, modes, `fsync` of folders, free bytes. It is started again until it ends by itself. Then every query
has one rollout, and those that are held out have none; records are whole, nothing half built is left, and the adapter
is bit for bit what uninterrupted training makes of the same rollouts. The last line is one JSON object; `stages` says
where harm struck.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
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
_TELLING = """
from genius_lite.report.terminal import TerminalProgress
enter = TerminalProgress.enter
def told(self, number, stage):
    print(f"STAGE {number} {stage}", flush=True)
    enter(self, number, stage)
TerminalProgress.enter = told
from genius_lite.cli import main
main()
"""
START = "start"
_MOST = 20  # harms to one run, then it is let alone
_HARMS = {"run": 6, "sampler": 2, "suspend": 1, "disk": 3}  # how often each, to the others
_SAMPLING = ("evaluate", "rollouts")  # stages with a sampler
_BUILT_FROM = ("recipe.json", "hf-checkpoint", "round-0")
_SAMPLED = ("rollouts.jsonl", "failed.jsonl", "pairs.jsonl", "filtered.json")


@dataclass
class Tally:
    """What was done, and what was found wrong."""

    kills: int = 0
    sampler_kills: int = 0
    suspensions: int = 0
    full_disks: int = 0
    refusing: int = 0
    runs: int = 0
    records_lost: int = 0
    records_doubled: int = 0
    damaged: int = 0
    adapters_that_differ: int = 0
    unexpected_ends: int = 0
    tracebacks: int = 0
    stages: dict[str, int] = field(default_factory=dict)

    @property
    def harmed(self) -> int:
        """Runs and samplers that were killed, and disks that were full."""
        return self.kills + self.sampler_kills + self.full_disks

    @property
    def wrong(self) -> int:
        """What there must be none of."""
        found = (self.records_lost, self.records_doubled, self.damaged, self.adapters_that_differ)
        return sum(found) + self.unexpected_ends + self.tracebacks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(json.dumps(many_runs(a.kills, a.seed)))


def many_runs(kills: int, seed: int) -> dict[str, Any]:
    """Runs one after the other until so many harms were done; all that was counted."""
    tally, draw, start = Tally(), random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seconds = stage_seconds(Path(folder))
    while tally.harmed < kills:
        with tempfile.TemporaryDirectory() as folder:
            one_run(Path(folder), draw, tally, seconds, refuse=tally.runs % 2 == 1)
        print(json.dumps(asdict(tally)), flush=True)
    return {**asdict(tally), "seconds": round(time.monotonic() - start)}


class Process:
    """A run that tells which stage it is in."""

    def __init__(self, project: Path, refused: str = ""):
        self.stage, self.said = START, list[str]()
        self.told: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        command = [*COMMAND[:1], "-c", f"{refused}\n{_TELLING}", *COMMAND[3:]]
        self.popen = subprocess.Popen(
            command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            if line.startswith("STAGE "):
                self.stage = line.removeprefix("STAGE ").strip()
                self.told.put((self.stage, time.monotonic()))
            else:
                self.said.append(line)
        self.told.put(("", time.monotonic()))

    def reach(self, wanted: str, stages: list[str]) -> str:
        """Wait for a stage, or for one behind it where it was over before; which that is, empty if the run ends."""
        stage = START
        while stage and stages.index(stage) < stages.index(wanted):
            stage = self.told.get()[0]
        return stage if self.popen.poll() is None else ""

    def end(self) -> int:
        code = self.popen.wait()
        self._reader.join()
        return code


def stage_seconds(project: Path) -> dict[str, float]:
    """Measure how long each stage takes in a run that is let alone."""
    lay_out(project)
    begun, process = time.monotonic(), Process(project)
    assert process.end() == 0, process.said
    seconds, last = dict[str, float](), (START, begun)
    while not process.told.empty():
        stage, at = process.told.get()
        seconds[last[0]] = seconds.get(last[0], 0.0) + at - last[1]
        last = (stage, at)
    return seconds


def one_run(
    project: Path,
    draw: random.Random,
    tally: Tally,
    seconds: dict[str, float],
    *,
    refuse: bool = False,
    at_most: int = _MOST,
) -> None:
    """One run through all its harms (`at_most` so many, then it is let alone), and the look at what it left.

    Args:
        seconds: that each stage takes, in their order.
        refuse: give it a file system that refuses what some do.
    """
    lay_out(project)
    refused, stages, ahead, harms, ended = refusing(*REFUSALS) if refuse else "", list(seconds), 0, 0, True
    tally.refusing += refuse
    while ended:
        process, ended = Process(project, refused), False
        while harms < at_most and not ended:
            wanted = min(stages[ahead:], key=lambda stage: tally.stages.get(stage, 0))
            if not (stage := process.reach(wanted, stages)):
                break
            ahead, harms = stages.index(stage), harms + 1
            ended = _harm(process, draw, tally, stage, seconds[stage])
        code, said = process.end(), "".join(process.said)
        of_harm = ended and (code == -signal.SIGKILL or (code == 2 and "error: file too large" in said))
        if code and not of_harm:
            tally.tracebacks += "Traceback" in said
            tally.unexpected_ends += 1
            print(f"ended with {code}: {said}", file=sys.stderr)
            return
        ended = code != 0
    tally.runs += 1
    look(project, tally)


def lay_out(project: Path) -> None:
    """A recipe, its queries and its model."""
    tiny_gguf(project / "tiny.gguf", "llama")
    (project / "q.txt").write_text("\n".join(QUERIES))
    (project / "r.yaml").write_text(RECIPE)


def _harm(process: Process, draw: random.Random, tally: Tally, stage: str, seconds: float) -> bool:
    """Do some harm to a run within the time that its stage takes; say whether it ends by that."""
    time.sleep(draw.uniform(0, seconds))
    (kind,) = draw.choices([*_HARMS], [*_HARMS.values()])
    with suppress(psutil.NoSuchProcess):
        if process.popen.poll() is not None:
            return False
        run = psutil.Process(process.popen.pid)
        samplers = [p for p in run.children(recursive=True) if "genius_lite.sampler.worker" in p.cmdline()]
        if kind == "suspend":
            run.suspend()
            time.sleep(1)
            run.resume()
            tally.suspensions += 1
            return False
        struck, ends = process.stage, True
        if kind == "disk":
            run.rlimit(psutil.RLIMIT_FSIZE, (1, psutil.RLIM_INFINITY))
            tally.full_disks += 1
        elif kind == "sampler" and stage.endswith(_SAMPLING) and samplers:
            samplers[0].kill()
            tally.sampler_kills += 1
            ends = False
        else:
            run.kill()
            tally.kills += 1
        tally.stages[struck] = tally.stages.get(struck, 0) + 1
        return ends
    return False


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
    left = [p for p in run.rglob("*") if ".partial" in p.name or ".genius-lite-tmp" in p.name]
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
