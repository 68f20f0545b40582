"""How long the rollout log of a long run takes to open, and how much memory: `python -m tests.benchmarks.rollout_log`.

Writes a log of rollouts as the search makes them, to a temporary folder, and opens it as a run that goes on does: where
each line begins, and which queries they are about. One pass over all records, which the stages after the sampling make
some of, is measured beside it. The file is in the system's cache when it is opened. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil

from genius_lite.records import Candidate, Completion, Finish, Query, Rollout, Step, query_id
from genius_lite.rundir.lines import RecordLog
from tests.benchmarks.machine import in_words, measured_on

_DIFFERENT = 50  # rollouts that are made; the rest repeats them under other ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--beams", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--step-tokens", type=int, default=25, help="mean")
    parser.add_argument("--future-tokens", type=int, default=60, help="mean, of the first step's")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "rollouts.jsonl"
        write(path, args)
        print(f"{args.queries} rollouts, {path.stat().st_size / 1e9:.2f} GB")
        found = measure(path)
    print(in_words(machine := measured_on()))  # at the end: it is no part of the memory
    print(json.dumps({"machine": machine, "queries": args.queries, **found}))


def measure(path: Path) -> dict[str, float]:
    """Seconds, and bytes that the process holds more."""
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    log = RecordLog(path, Rollout)
    ids = log.records.query_ids()
    opened = time.perf_counter() - start
    held = psutil.Process().memory_info().rss - before
    log.close()
    print(f"opened in {opened:.2f} s, {len(set(ids))} queries, {held / 1e6:.0f} MB")
    start = time.perf_counter()
    tokens = sum(rollout.sampled_tokens for rollout in log.records)
    passed = time.perf_counter() - start
    more = psutil.Process().memory_info().rss - before
    print(f"one pass over its {tokens} tokens in {passed:.1f} s, {more / 1e6:.0f} MB")
    return {
        "bytes": path.stat().st_size,
        "open_s": round(opened, 3),
        "open_bytes": held,
        "pass_s": round(passed, 2),
        "pass_bytes": more,
    }


def write(path: Path, args: argparse.Namespace) -> None:
    """The log: what an append writes, without waiting for the disk each time."""
    rng = np.random.default_rng(0)
    lines = [msgspec.json.encode(rollout(rng, args)) + b"\n" for _ in range(_DIFFERENT)]
    at = len(b'{"query":{"id":"')
    with path.open("wb") as file:
        for number in range(args.queries):
            line = lines[number % _DIFFERENT]
            file.write(line[:at] + query_id(str(number)).encode() + line[at + 16 :])


def rollout(rng: np.random.Generator, args: argparse.Namespace) -> Rollout:
    """A search whose beams mostly live until its last step; later steps leave shorter futures."""

    def completion(mean: float, finish: Finish) -> Completion:
        tokens = rng.integers(0, 49152, 1 + rng.poisson(mean)).tolist()
        return Completion(tokens, [round(-float(x), 6) for x in rng.exponential(0.4, len(tokens))], finish)

    def candidate(beam: int, index: int) -> Candidate:
        future = completion(args.future_tokens * (1 - index / args.steps), "end")
        value = future.mean_logprob
        return Candidate(beam, completion(args.step_tokens, "step"), future, value, value - float(rng.normal()))

    steps = []
    for index in range(args.steps):
        beams = args.beams if index else 1
        found = [candidate(beam, index) for beam in range(beams) for _ in range(args.candidates)]
        steps.append(Step(index, found, sorted(rng.permutation(len(found))[: args.beams].tolist())))
    prompt = "A question of a hundred characters or so, about some rolls that a baker puts into bags of six. " * 2
    return Rollout(Query("0" * 16, prompt, rng.integers(0, 49152, 60).tolist()), steps)


if __name__ == "__main__":
    main()
