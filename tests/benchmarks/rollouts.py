"""Rollout speed against its peers, on the same model file, queries and M, N, K, all in one run, interleaved.

    python -m tests.benchmarks.rollouts --model F.gguf --queries F.jsonl --against bench,high-level,server,transformers

Ours: `plain` (every slot decoding, no search), `search` (the complete stepwise foresight search, prefill and tail
included) and with `--cheaper` the search with each of its savings on. Peers: `bench` is llama-batched-bench, the
ceiling; `high-level` is llama_cpp.Llama with log-probabilities; `server` is llama-server with as many slots, one client
each; `transformers` is `generate` in bf16. A peer that is not installed is skipped and named. llama-batched-bench and
llama-server build from the llama-cpp-python source distribution (vendor/llama.cpp) and are found on PATH or by option.
`--draws host,device` measures ours twice, with tokens drawn from logits and by the device that computes them.

Instead of these, `--sizes 16,256` compares the cost of a query and the memory at such numbers of queries, and
`--soak 10` searches for ten minutes and reports how memory grew. At the end are the rows of RESULTS.md's tables, with
medians of the rounds (`--repeats`) and the ratios of each of them, and one JSON object in the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil

from genius_lite.data.queries import select
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.foresight.pairs import draw_pairs
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.hardware.system import cores
from genius_lite.machine.bench import decode_speed
from genius_lite.recipe import Foresight, Pairs, Queries
from genius_lite.records import Query, Rollout
from genius_lite.rundir.lines import RecordLog
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from tests.benchmarks.machine import in_words, measured_on
from tests.benchmarks.peers import GENERATED, PEERS, TITLES, Missing
from tests.benchmarks.table import markdown

SETTINGS = ("slots", "parked", "threads", "context", "kv_unified", "in_flight", "draws")
SETTINGS += ("beams", "candidates", "steps", "max_tokens", "temperature", "repeats")
Draw = Literal["host", "device"]
Results = dict[str, list[dict[str, Any]]]  # what each round gave, by what was measured
CHEAPER = {"skip_agreeing": 0.5, "future_tokens": 48}


def settings(a: argparse.Namespace, draw: Draw) -> EngineSettings:
    return EngineSettings(
        slots=a.slots, parked=a.parked, context=a.context, threads=a.threads, kv_unified=a.kv_unified, draw=draw
    )


def foresight(a: argparse.Namespace) -> Foresight:
    return Foresight(**{key: getattr(a, key) for key in ("beams", "candidates", "steps", "max_tokens", "temperature")})


def plain(a: argparse.Namespace, queries: list[Query], draw: Draw = "host") -> dict[str, Any]:
    """Every slot decodes `GENERATED` tokens after a prompt that was prefilled before: what `bench` does too."""
    speed = decode_speed(
        a.model, settings(a, draw), [queries[i % len(queries)].tokens for i in range(a.slots)], GENERATED
    )
    return {
        "tokens_per_s": speed.tokens_per_s,
        "share_decode": speed.decode,
        "share_sampling": speed.sampling,
        "peak_mb": speed.peak / 1e6,
    }


async def search(a: argparse.Namespace, queries: list[Query], draw: Draw = "host", **cheaper: float) -> dict[str, Any]:
    """The complete search, as `genius-lite run` does it."""
    cfg = foresight(a).model_copy(update=cheaper)
    with tempfile.TemporaryDirectory() as folder:
        log = RecordLog(Path(folder) / "rollouts.jsonl", Rollout)
        async with open_sampler(a.model, settings(a, draw), Sampling(cfg.temperature), Path(folder) / "log") as sampler:
            start = time.perf_counter()
            await sample_rollouts(queries, sampler, cfg, (0, 1), a.in_flight, log.append, _refuse)
            seconds = time.perf_counter() - start
            stats = await sampler.drain()
        if draw == "device":
            see_that_it_draws((Path(folder) / "log").read_text(errors="replace"))
        log.close()
        rollouts = list(log.records)
    steps = [step for rollout in rollouts for step in rollout.steps]
    return {
        "tokens_per_s": stats.sampled / seconds,
        "queries_per_minute": 60 * len(queries) / seconds,
        "seconds": seconds,
        "sampled_tokens": stats.sampled,
        "shared_tokens": stats.shared,
        "prefilled_tokens": stats.prefilled,
        "tokens_per_decode_step": (stats.sampled - stats.shared + stats.prefilled) / stats.decode_steps,
        "share_decode": stats.decode_s / seconds,
        "share_sampling": stats.sampling_s / seconds,
        "share_other": 1 - (stats.decode_s + stats.sampling_s) / seconds,
        "peak_mb": stats.peak / 1e6,
        "seconds_per_query": seconds / len(queries),
        "steps": len(steps),
        "skipped_steps": sum(not step.foreseen for step in steps),
        "pairs": len([*draw_pairs(rollouts, Pairs(), cfg.tau, (0, 1), lambda response: None, Counter())]),
    }


def see_that_it_draws(said: str) -> None:
    """Look at what the sampler wrote.

    Raises:
        Missing: the device cannot draw, so that the host did, which would be measured as if it could.
    """
    if there := [line for line in said.splitlines() if "tokens are drawn on the host" in line]:
        raise Missing(there[0])


def _refuse(query: Query, reason: str) -> None:
    raise RuntimeError(f"query {query.id}: {reason}")


async def soak(a: argparse.Namespace, queries: list[Query]) -> dict[str, Any]:
    """Search the queries over and over; how far the worker's and this process's memory grew after the first minute."""
    cfg = foresight(a)
    samples: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        async with open_sampler(
            a.model, settings(a, a.draws[0]), Sampling(cfg.temperature), Path(folder) / "log"
        ) as sampler:
            start, rounds = time.perf_counter(), 0
            while (at := time.perf_counter() - start) < 60 * a.soak:
                log = RecordLog(Path(folder) / f"{rounds}.jsonl", Rollout)
                await sample_rollouts(queries, sampler, cfg, (0, rounds), a.in_flight, log.append, _refuse)
                log.close()
                rounds += 1
                worker = psutil.Process(sampler.pid).memory_info().rss / 1e6
                samples.append((at, worker, psutil.Process().memory_info().rss / 1e6))
    settled = [sample for sample in samples if sample[0] >= 60]
    return {
        "minutes": (time.perf_counter() - start) / 60,
        "rounds": rounds,
        "worker_grew_mb": settled[-1][1] - settled[0][1],
        "worker_mb": settled[-1][1],
        "parent_grew_mb": settled[-1][2] - settled[0][2],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--column", default="prompt")
    parser.add_argument("--against", default="", help=f"comma-separated: {','.join(PEERS)}")
    parser.add_argument("--limit", type=int, default=32, help="queries")
    parser.add_argument("--cheaper", action="store_true", help="also the search with each of its savings")
    parser.add_argument("--sizes", default="", help="numbers of queries whose costs are compared, such as 16,256")
    parser.add_argument("--soak", type=float, default=0, help="minutes")
    parser.add_argument("--repeats", type=int, default=1, help="rounds of everything, interleaved")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--parked", type=int, default=-1, help="cached paths beside the slots; -1: as many")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--context", type=int, default=512, help="tokens a branch")
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("--draws", default="host", help="where tokens are drawn: host, device, or host,device")
    parser.add_argument("--in-flight", type=int, default=0, help="searches at once; 0: as `run` chooses")
    parser.add_argument("--beams", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batched-bench", help="path of llama-batched-bench")
    parser.add_argument("--server", help="path of llama-server")
    a = parser.parse_args()
    a.draws = a.draws.split(",")
    a.in_flight = a.in_flight or searches_in_flight(a.slots, foresight(a))
    a.parked = a.slots if a.parked < 0 else a.parked
    return a


def names(draw: str) -> tuple[str, str]:
    """Of the search and of plain decoding with this drawing; the search, which tells if the device cannot, is first."""
    drawn = "" if draw == "host" else f", drawn on the {draw}"
    return f"search{drawn}", f"plain{drawn}"


def rows(a: argparse.Namespace, queries: int, results: Results) -> list[dict[str, str]]:
    """A row for each place where tokens are drawn."""
    found, peers = [], {name: results[name] for name in PEERS if name in results}
    for draw in a.draws:
        if not results.keys() >= {*names(draw)}:
            continue
        search, plain = (results[name] for name in names(draw))
        kv = "unified" if a.kv_unified else "split"
        row = {"model": a.model.stem, "queries": f"{queries}", "rounds": f"{a.repeats}"}
        row |= {"slots, KV, threads": f"{a.slots}, {kv}, {a.threads}", "drawn on": draw}
        row |= {"search tokens/s": f"{_speed(search):,.0f}", "plain": f"{_speed(plain):,.0f}"}
        row |= {TITLES[name]: f"{_speed(of):,.0f}" for name, of in peers.items()}
        for name, of in peers.items():
            row[f"search / {name}"] = _over(search, of)
            row |= {"plain / bench": _over(plain, of)} if name == "bench" else {}
        row["shared"] = f"{median(each['shared_tokens'] / each['sampled_tokens'] for each in search):.0%}"
        row["drawing"] = f"{median(each['share_sampling'] for each in search):.0%}"
        if draw == "device" and "host" in a.draws:
            row["search, device / host"] = _over(search, results["search"])
            row["plain, device / host"] = _over(plain, results["plain"])
        found.append(row)
    return found


def rows_of_sizes(results: Results) -> list[dict[str, str]]:
    """What a query costs, by their number; in terms of the first number's."""
    found, first = [], 0.0
    for name, of in results.items():
        if name.endswith(" queries"):
            seconds, peak = (median(each[key] for each in of) for key in ("seconds_per_query", "peak_mb"))
            cost = f"{seconds:.3f}" + (f" ({seconds / first:.2f})" if first else "")
            row = {"queries": name.split()[0], "seconds a query": cost, "peak memory of the worker": f"{peak:,.0f} MB"}
            found.append(row)
            first = first or seconds
    return found


def _speed(rounds: list[dict[str, Any]]) -> float:
    return median(each["tokens_per_s"] for each in rounds)


def _over(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """The ratio of the medians, and of several rounds that of each."""
    each = [f"{one['tokens_per_s'] / other['tokens_per_s']:.2f}" for one, other in zip(ours, theirs, strict=False)]
    return f"{_speed(ours) / _speed(theirs):.2f}" + (f" ({', '.join(each)})" if len(each) > 1 else "")


def main() -> None:
    a, machine = arguments(), measured_on()
    print(in_words(machine), flush=True)
    with Vocabulary.open(a.model) as vocabulary:
        every, *_ = select(Queries(source=a.queries, column=a.column), vocabulary)
    queries = every[: a.limit]
    measures: dict[str, Any] = {}
    for draw in a.draws:
        searched, decoded = names(draw)
        measures[searched] = lambda draw=draw: asyncio.run(search(a, queries, draw))
        measures[decoded] = lambda draw=draw: plain(a, queries, draw)
    sizes = [int(size) for size in a.sizes.split(",") if size]
    if sizes or a.soak:
        measures = {}
    for size in sizes:
        measures[f"{size} queries"] = lambda size=size: asyncio.run(search(a, every[:size]))
    if a.cheaper:
        for name, value in CHEAPER.items():
            measures[f"{name} {value}"] = lambda option={name: value}: asyncio.run(search(a, queries, **option))
    if a.soak:
        measures["soak"] = lambda: asyncio.run(soak(a, queries))
    for name in filter(None, a.against.split(",")):
        measures[name] = lambda peer=PEERS[name]: peer(a, queries)
    results, skipped = Results(), dict[str, str]()
    for repeat in range(a.repeats):
        for name, measure in measures.items():
            if name.startswith("plain") and name.replace("plain", "search") in skipped:
                continue
            try:
                measured = measure()
            except Missing as e:
                skipped[name] = str(e)
                print(f"{repeat} {name}: skipped, {e}", flush=True)
            else:
                results.setdefault(name, []).append(measured)
                print(f"{repeat} {name}: {json.dumps(measured)}", flush=True)
    print(markdown(rows(a, len(queries), results) or rows_of_sizes(results)))
    medians = {name: {key: round(median(row[key] for row in of), 3) for key in of[0]} for name, of in results.items()}
    ratios = {}
    peers = {name: medians[name]["tokens_per_s"] for name in ("plain", *PEERS) if name in medians}
    for ours in (name for name in medians if name.startswith(("search", "plain"))):
        speed = medians[ours]["tokens_per_s"]
        against = {peer: rate for peer, rate in peers.items() if ours.startswith("search") or peer == "bench"}
        ratios |= {f"{ours} / {peer}": speed / rate for peer, rate in against.items()}
    for host, device in zip(names("host"), names("device"), strict=True):
        if host in medians and device in medians:
            ratios[f"{host}, device / host"] = medians[device]["tokens_per_s"] / medians[host]["tokens_per_s"]
    cost = {name: row["seconds_per_query"] for name, row in medians.items() if "seconds_per_query" in row}
    first = next(iter(cost), "")
    ratios |= {f"seconds a query, {name} / {first}": cost[name] / cost[first] for name in cost if name != first}
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    result = {
        "model": a.model.name,
        "queries": len(queries),
        "settings": {name: getattr(a, name) for name in SETTINGS},
        "machine": machine,
        "median": medians,
        "ratios": ratios,
        "skipped": skipped,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
