"""Hours of rollouts whose worker is killed, stopped and starved at random: the same come of it.

    python -m tests.faults.harmed --minutes 120 [--share 0.12] [--out F.json]

Searches of a tiny model are made twice with the same seeds, by a worker that is let alone and by one that is harmed: it
is killed (SIGKILL, SIGSEGV, SIGABRT), also while it loads; stopped for good (SIGSTOP), so that the watchdog has to see
it; stopped for seconds and let go on; given a hundredth of its time, or no more memory than it has. Both decode one
branch at a time: in company llama.cpp rounds otherwise, and where two tokens meet a draw may change. What a worker died
of twice is not harmed a third time, which would set it aside as the cause. `--share` of a core is what all processes
take on average. The last line is one JSON object, which `--out` has after every cycle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.foresight.rollouts import sample_rollouts
from genius_lite.recipe import Foresight
from genius_lite.records import Query, Rollout, query_id
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from tests.support.models import tiny_gguf

SEARCH = Foresight(beams=2, candidates=2, steps=2, max_tokens=24, temperature=1.5)
HARMS = {"killed": 6, "stopped": 1, "paused": 2, "slowed": 4, "no memory": 2}  # how often each, to the others
_QUESTIONS, _IN_FLIGHT = 6, 2
_DEADLY = ("killed", "stopped", "no memory")
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
_WHILE_LOADING = 0.2  # of all harms, at most
_CLOSE = 0.02  # nats: rounding, of another prefill than the first one's


@dataclass
class Tally:
    """What was done, and what came of it."""

    minutes: float = 0.0
    share: float = 0.0
    cycles: int = 0
    restarts: int = 0
    while_loading: int = 0
    harms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HARMS, 0))
    rollouts: int = 0
    the_same: int = 0
    other_tokens: int = 0
    other_figures: int = 0
    largest_difference: float = 0.0
    set_aside: int = 0
    lost: int = 0
    doubled: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--watchdog", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    tally = asyncio.run(harmed(a.minutes * 60, a.share, a.watchdog, a.seed, a.out))
    print(json.dumps(asdict(tally)))
    wrong = tally.other_tokens + tally.other_figures + tally.set_aside + tally.lost + tally.doubled
    raise SystemExit(bool(wrong or psutil.Process().children()))


async def harmed(seconds: float, share: float, watchdog: float, seed: int, out: Path | None = None) -> Tally:
    """Search until the time is over; what was counted."""
    tally, draw, start, before = Tally(), random.Random(seed), time.monotonic(), _cpu()
    settings = EngineSettings(slots=1, context=256, threads=1, watchdog=watchdog)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_gguf(folder / "tiny.gguf", "llama")
        with Vocabulary.open(folder / "tiny.gguf") as vocabulary:
            texts = [f"question {n}" for n in range(_QUESTIONS)]
            queries = [Query(query_id(text), text, vocabulary.prompt(text)) for text in texts]
        opened = (folder / "tiny.gguf", settings, Sampling.of(SEARCH))
        async with open_sampler(*opened, folder / "a.log") as alone, open_sampler(*opened, folder / "b.log") as other:
            while (spent := time.monotonic() - start) < seconds:
                expected = await searched(queries, alone, tally.cycles, tally)
                harming = asyncio.create_task(harm(other, alone.pid, draw, watchdog, tally))
                found = await searched(queries, other, tally.cycles, tally)
                harming.cancel()
                await asyncio.wait({harming})
                if not harming.cancelled():
                    harming.result()
                compare(expected, found, tally)
                tally.cycles, tally.restarts = tally.cycles + 1, other.restarts
                tally.share, tally.minutes = (_cpu() - before) / spent if spent else 0.0, spent / 60
                if out:
                    out.write_text(json.dumps(asdict(tally)) + "\n")
                await asyncio.sleep(max(0.0, (_cpu() - before) / share - (time.monotonic() - start)))
    return tally


def _cpu() -> float:
    """Seconds of a core that this process and its children have taken, those that ended included."""
    own = psutil.Process()
    spent = sum(own.cpu_times()[:4])
    for child in own.children():
        with suppress(psutil.NoSuchProcess):
            spent += sum(child.cpu_times()[:2])
    return spent


async def searched(queries: list[Query], sampler: LocalSampler, cycle: int, tally: Tally) -> list[Rollout]:
    """The rollouts of these queries; each cycle has seeds of its own."""
    made: list[Rollout] = []

    def failed(query: Query, reason: str) -> None:
        tally.set_aside += 1
        print(f"cycle {cycle}: {query.prompt}: {reason}", flush=True)

    await sample_rollouts(queries, sampler, SEARCH, (0, cycle), _IN_FLIGHT, made.append, failed)
    return made


async def harm(sampler: LocalSampler, spared: int, draw: random.Random, watchdog: float, tally: Tally) -> None:
    """Harm a sampler's worker for ever, at random times; never the process `spared`."""
    last_loading = False
    while True:
        await asyncio.sleep(draw.choice((0.0, 0.05, 0.3, 2.0)) * draw.random())
        loading = sampler._worker is None
        if loading and (last_loading or draw.random() > _WHILE_LOADING):  # three times in a row is given up
            await asyncio.sleep(0.2)
            continue
        (kind,) = draw.choices([*HARMS], [*HARMS.values()])
        if kind in _DEADLY and any(pending.failures > 1 for pending in sampler._pending):
            kind = "slowed"
        workers = [p for p in psutil.Process().children() if p.pid != spared and p.status() != psutil.STATUS_ZOMBIE]
        if not workers or (loading and kind != "killed"):
            continue
        last_loading = loading
        tally.while_loading += loading
        tally.harms[kind] += 1
        with suppress(psutil.NoSuchProcess):
            await _HOW[kind](workers[0], draw, watchdog)


async def _killed(worker: psutil.Process, draw: random.Random, watchdog: float) -> None:
    worker.send_signal(draw.choice(_SIGNALS))
    await asyncio.sleep(1.0)


async def _stopped(worker: psutil.Process, draw: random.Random, watchdog: float) -> None:
    worker.suspend()
    while psutil.pid_exists(worker.pid):  # until the watchdog has seen it
        await asyncio.sleep(0.5)


async def _paused(worker: psutil.Process, draw: random.Random, watchdog: float) -> None:
    worker.suspend()
    try:
        await asyncio.sleep(draw.uniform(0, watchdog / 4))
    finally:
        worker.resume()


async def _slowed(worker: psutil.Process, draw: random.Random, watchdog: float) -> None:
    """A hundredth of its time, as beside programs that take everything."""
    until = time.monotonic() + draw.uniform(0, watchdog / 4)
    while time.monotonic() < until:
        worker.suspend()
        try:
            await asyncio.sleep(0.5)
        finally:
            worker.resume()
        await asyncio.sleep(0.005)


async def _no_memory(worker: psutil.Process, draw: random.Random, watchdog: float) -> None:
    size = worker.memory_info().vms
    worker.rlimit(psutil.RLIMIT_AS, (size, size))


_HOW = {"killed": _killed, "stopped": _stopped, "paused": _paused, "slowed": _slowed, "no memory": _no_memory}


def compare(expected: list[Rollout], found: list[Rollout], tally: Tally) -> None:
    """Count how many of the rollouts are the same, and how others differ."""
    by_id = {rollout.query.id: rollout for rollout in found}
    tally.rollouts += len(expected)
    tally.doubled += len(found) - len(by_id)
    for rollout in expected:
        other = by_id.get(rollout.query.id)
        if other is None:
            tally.lost += 1
        elif _tokens(rollout) != _tokens(other):
            tally.other_tokens += 1
            print(f"other tokens: {_tokens(rollout)}\n{_tokens(other)}", flush=True)
        else:
            figures = zip(_figures(rollout), _figures(other), strict=True)
            difference = max(abs(a - b) for a, b in figures)
            tally.largest_difference = max(difference, tally.largest_difference)
            tally.the_same += difference <= _CLOSE
            tally.other_figures += difference > _CLOSE


def _tokens(rollout: Rollout) -> list[list]:
    """What was drawn and kept, without figures."""
    return [[s.kept, s.repeats, [(c.beam, c.tokens, c.last.finish) for c in s.candidates]] for s in rollout.steps]


def _figures(rollout: Rollout) -> list[float]:
    """Nats of all tokens, and values and advantages of all candidates."""
    found = list[float]()
    for candidate in (c for s in rollout.steps for c in s.candidates):
        futures = candidate.future.logprobs if candidate.future else []
        found += [*candidate.step.logprobs, *futures, candidate.value, candidate.advantage]
    return found


if __name__ == "__main__":
    main()
