"""What a Ray cluster costs and brings: the driver's overhead, the speed-up of two nodes, and how soon one joins.

    python -m tests.benchmarks.cluster [--model F.gguf] [--workers 1000] [--queries 20000]

The overhead is the driver's processor time for each query: actors on nodes of this machine stand for so many workers,
each of which takes its time and sends a rollout of a real one's size. The speed-up compares two nodes of one core with
one node of one core, and with one of both, on the same queries of SmolLM2 (or F.gguf), from when the first node is
ready; a node that joins is timed until it samples, its model on the way included. The simulated rollouts are written to
a log as in a run. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from genius_lite.cluster.actor import HostSettings
from genius_lite.cluster.nodes import connected
from genius_lite.cluster.ray import ray_host, sample_on_cluster
from genius_lite.cluster.work_queue import WorkQueue
from genius_lite.data.queries import select
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import Stop
from genius_lite.recipe import Foresight, Model, Queries, Sampler
from genius_lite.records import Candidate, Completion, Query, Rollout, Step
from genius_lite.rundir.lines import RecordLog
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.source import locate
from tests.benchmarks.machine import in_words, measured_on
from tests.conftest import SMOLLM2

NODES = {"one node of both cores": (2,), "one node of a core": (1,), "two nodes of a core": (1, 1)}
"""Cores of each node of those that are compared."""
_ACTORS = 4
_PATIENCE = 120  # seconds that a node may take to join
_MANY = 100_000  # queries: more than are searched until then
RAY = str(Path(sys.executable).with_name("ray"))


class Simulated:
    """An actor that stands for many workers: each search takes about `seconds`."""

    def __init__(self, seconds: float):
        self._seconds, self._rng = seconds, random.Random(0)

    async def search(self, query: Query) -> Rollout:
        await asyncio.sleep(self._seconds * self._rng.uniform(0.5, 1.5))
        return _rollout(query)


def _rollout(query: Query) -> Rollout:
    """Three steps of eight candidates of a hundred tokens: 20,000 numbers, as a run's rollouts have."""
    step = Completion(list(range(30)), [-0.123456] * 30, "step")
    future = Completion(list(range(70)), [-0.123456] * 70, "end")
    candidates = [Candidate(0, step, future, -0.12, -0.01) for _ in range(8)]
    return Rollout(query, [Step(k, candidates, [0, 1]) for k in range(3)])


async def overhead(ray: Any, workers: int, count: int, seconds: float, log: RecordLog[Rollout]) -> dict[str, float]:
    """Of the driver: processor milliseconds for each query, and its memory (bytes) at a quarter and at the end."""
    process, done, marks = psutil.Process(), 0, {}

    def finished(rollout: Rollout) -> None:
        nonlocal done
        log.append(rollout)
        done += 1
        if done == count // 4:
            marks["quarter"] = process.memory_info().rss

    queries = (Query(f"{n:016x}", f"question {n}", list(range(100))) for n in range(count))
    queue = WorkQueue(queries, finished, lambda query, reason: None, print, Stop())
    actor = ray.remote(Simulated).options(num_cpus=0, max_concurrency=10_000)
    actors = [actor.remote(seconds) for _ in range(_ACTORS)]
    hosts = [ray_host(actors[n % _ACTORS], f"worker {n}", 1) for n in range(workers)]
    await asyncio.gather(*(hosts[n].search(Query("0", "", [])) for n in range(_ACTORS)))
    began, busy = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        serving = [group.create_task(queue.serve(host)) for host in hosts]
        await queue.join(60)
        for task in serving:
            task.cancel()
    used = time.process_time() - busy
    return {
        "workers": workers,
        "queries": done,
        "driver ms/query": 1000 * used / done,
        "wall s": time.perf_counter() - began,
        "ideal s": seconds * count / workers,
        "memory at a quarter": marks["quarter"],
        "memory at the end": process.memory_info().rss,
    }


def timed(address: str, queries: list[Query], settings: HostSettings, files: dict[str, Path]) -> float:
    """Seconds from when the first node is ready until the last query is done."""
    ready: list[float] = []

    def say(line: str) -> None:
        print(line, flush=True)
        ready.append(time.perf_counter())

    def refuse(query: Query, reason: str) -> None:
        raise RuntimeError(reason)

    queue = WorkQueue(queries, lambda rollout: None, refuse, say, Stop())
    asyncio.run(sample_on_cluster(address, queue, settings, files))
    return time.perf_counter() - ready[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="that a simulated search takes")
    parser.add_argument("--searched", type=int, default=48, help="real queries, for the speed-up")
    parser.add_argument("--nodes", default=",".join(NODES), help="that are compared")
    a = parser.parse_args()
    from ray.cluster_utils import Cluster

    path = locate(Model(gguf=a.model))
    with Vocabulary.open(path) as vocabulary:
        source = Queries(source="recipes/quickstart-queries.jsonl", limit=a.searched)
        queries, *_ = select(source, vocabulary)
    search = Foresight(beams=2, candidates=4, steps=2, max_tokens=60)
    sampler = Sampler(slots=16, watchdog=120)
    name = sha256([path])
    settings = HostSettings(name, "", sampler, search, 512, (0, 1))
    result: dict[str, Any] = {"machine": measured_on(), "model": path.name}
    print(in_words(result["machine"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        # Ray's workers look `Simulated` up by the name of its module.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for compared in a.nodes.split(","):
                nodes = [cluster.add_node(num_cpus=cpus) for cpus in NODES[compared]]
                result[f"{compared} s"] = timed(cluster.address, queries, settings, {name: path})
                for node in nodes:
                    cluster.remove_node(node)
            cluster.add_node(num_cpus=1)
            result["joined"] = joined(cluster, queries, settings, {name: path})
            with connected(cluster.address) as ray:
                log = RecordLog(Path(folder) / "log.jsonl", Rollout)
                result["driver"] = asyncio.run(overhead(ray, a.workers, a.queries, a.seconds, log))
        finally:
            cluster.shutdown()
    print(json.dumps(result))


def joined(cluster: Any, queries: list[Query], settings: HostSettings, files: dict[str, Path]) -> dict[str, float]:
    """Seconds after which a node that joins in mid-round samples, and of the round, which goes on until it does."""
    moments: dict[str, float] = {}
    times: list[float] = []
    nodes: list[subprocess.Popen[bytes]] = []
    began, stop = 0.0, Stop()

    def say(line: str) -> None:
        print(line, flush=True)
        if line.startswith("sampling on "):
            moments["second" if "first" in moments else "first"] = time.perf_counter()

    def finished(rollout: Rollout) -> None:
        nonlocal began
        times.append(time.perf_counter())
        if len(times) == 2:
            began = time.perf_counter()
            nodes.append(subprocess.Popen([RAY, "start", "--address", cluster.address, "--num-cpus=1", "--block"]))
        late = len(times) > 2 and time.perf_counter() - began > _PATIENCE
        stop.asked = late or (len(times) >= len(queries) and "second" in moments)

    again = (Query(f"{n:016x}", q.prompt, q.tokens) for n, q in zip(range(_MANY), cycle(queries), strict=False))
    queue = WorkQueue(again, finished, lambda query, reason: None, say, stop)
    try:
        asyncio.run(sample_on_cluster(cluster.address, queue, settings, files))
    finally:
        for node in nodes:  # `Cluster.add_node` works in the main thread only
            node.terminate()
            node.wait()
    return {"samples after s": moments["second"] - began, "round s": times[-1] - times[0]}


if __name__ == "__main__":
    from tests.benchmarks import cluster as imported  # Ray copies a class of __main__ with all that it names

    imported.main()
