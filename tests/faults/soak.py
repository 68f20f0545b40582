"""Hours of rollouts, with an eye on memory and open files.

    python -m tests.faults.soak --hours 2 [--model F.gguf]

The searches of a round are made again and again by the same processes, each into a log as in a run. Memory (what is not
shared with other processes, and so not the model's mapped file) and open files are noted once a minute. The first tenth
of the time is for everything to reach its size; what both processes hold in the last tenth is compared with what they
held right after it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from genius_lite.data.queries import select
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.recipe import Foresight, Model, Queries
from genius_lite.records import Query, Rollout
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.weights.source import locate
from tests.conftest import SMOLLM2

_SETTLING = 0.1  # of the time


@dataclass
class Look:
    """At both processes: bytes of memory, and open files."""

    seconds: float
    main: int
    worker: int
    main_files: int
    worker_files: int
    rollouts: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    looks = asyncio.run(soak(locate(Model(gguf=a.model)), a.hours * 3600, a.every, a.threads))
    print(json.dumps(summary(looks)))


async def soak(model: Path, seconds: float, every: float, threads: int) -> list[Look]:
    """Search until the time is over; what was seen meanwhile."""
    cfg = Foresight(beams=2, candidates=4, steps=3, max_tokens=96, temperature=1.0)
    with Vocabulary.open(model) as vocabulary:
        queries, *_ = select(Queries(source="recipes/quickstart-queries.jsonl"), vocabulary)
    settings = EngineSettings(slots=16, parked=16, context=512, threads=threads)
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as folder:
        log = RecordLog(Path(folder) / "rollouts.jsonl", Rollout)
        async with open_sampler(model, settings, Sampling(1.0), Path(folder) / "sampler.log") as sampler:
            looking = asyncio.create_task(look(sampler, log, every, looks))
            start, cycle = time.monotonic(), 0
            while time.monotonic() - start < seconds:
                in_flight = searches_in_flight(settings.slots, cfg)
                await sample_rollouts(queries, sampler, cfg, (0, cycle), in_flight, log.append, _refuse)
                cycle += 1
            looking.cancel()
    return looks


async def look(sampler: LocalSampler, log: RecordLog[Rollout], every: float, looks: list[Look]) -> None:
    """Look at both processes for ever, at these intervals (seconds)."""
    start = time.monotonic()
    while True:
        await asyncio.sleep(every)
        main, worker = psutil.Process(), psutil.Process(sampler.pid)
        memory = [process.memory_full_info().uss for process in (main, worker)]
        seen = Look(time.monotonic() - start, *memory, main.num_fds(), worker.num_fds(), len(log.records))
        looks.append(seen)
        print(json.dumps(asdict(seen)), flush=True)


def _refuse(query: Query, reason: str) -> None:
    raise RuntimeError(f"{query.id}: {reason}")


def summary(looks: list[Look]) -> dict[str, float]:
    """How much more of everything there was at the end than after settling; memory as a share of what it was."""
    part = max(1, round(_SETTLING * len(looks)))
    early, late = looks[part : 2 * part] or looks[-1:], looks[-part:]

    def mean(of: list[Look], name: str) -> float:
        return statistics.fmean(getattr(seen, name) for seen in of)

    grown = {f"{name} memory grown": round(mean(late, name) / mean(early, name) - 1, 4) for name in ("main", "worker")}
    files = {f"{name} grown": round(mean(late, name) - mean(early, name), 2) for name in ("main_files", "worker_files")}
    return {"hours": round(looks[-1].seconds / 3600, 3), "rollouts": looks[-1].rollouts, **grown, **files}


if __name__ == "__main__":
    main()
