"""A round that a server samples: with the round's model behind it, and with another one."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from genius_lite.api import open_run
from genius_lite.errors import UserError
from genius_lite.lines import read_records
from genius_lite.recipe import Evaluate, Foresight, Model, Queries, Recipe, Sampler, Server
from genius_lite.records import Rollout
from genius_lite.report.progress import Progressor
from genius_lite.round import Policy
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.stages import sample
from tests.sampler.http import FakeServer
from tests.sampler.test_engine import extend
from tests.tiny import questions, tiny_gguf


class Behind:
    """Answers a request with what a model samples."""

    def __init__(self, gguf: Path):
        self._engine, self._lock = Engine(str(gguf), EngineSettings(slots=1, context=256, threads=1)), threading.Lock()

    def __call__(self, body: dict, number: int) -> list:
        sampling, limit = Sampling(body["temperature"]), body["max_tokens"]
        with self._lock:
            (found,) = extend(self._engine, body["prompt"], [body["seed"]], limit=limit, sampling=sampling)
        return [*zip(found.tokens, found.logprobs, strict=True)]


@contextmanager
def serving(gguf: Path) -> Iterator[FakeServer]:
    """Listens in a thread of its own, as the stage has an event loop to itself."""
    fake, ready, over = FakeServer(Behind(gguf)), threading.Event(), asyncio.Event()

    async def listen() -> None:
        async with fake.listening():
            ready.set()
            await over.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),))
    thread.start()
    ready.wait()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def sampled(gguf: Path, url: str, folder: Path) -> tuple[list[Rollout], list[str]]:
    """The rollouts of a first round, and what was said meanwhile."""
    recipe = Recipe(
        out=str(folder / "run"),
        model=Model(gguf=str(gguf)),
        queries=Queries(source=questions(folder, 6)),
        foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=20),
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=2, threads=1, server=Server(url=url, in_flight=4, retries=1)),
    )
    progress, said = Progressor(Console(quiet=True)), []
    progress.say = said.append
    with open_run(recipe, progress) as rounds:
        r = rounds(1)
        sample(r, Policy(r.job.source.path))
        return read_records(r.here / "rollouts.jsonl", Rollout), said


def test_a_server_with_the_rounds_model_samples_it(tiny_llama, tmp_path):
    with serving(tiny_llama) as fake:
        found, said = sampled(tiny_llama, fake.url, tmp_path)
    assert len({r.query.id for r in found}) == 6
    (line,) = [line for line in said if "samples" in line]
    apart, rounding = map(float, re.findall(r"\d\.\d{4}", line))
    assert apart < 0.001
    assert rounding < 0.05


def test_one_with_another_model_is_refused(tiny_llama, tmp_path):
    tiny_gguf(tmp_path / "other.gguf", "llama", seed=8)
    with (
        serving(tmp_path / "other.gguf") as fake,
        pytest.raises(UserError, match=r"holds another model: \d\.\d+ nats .* load .*\.gguf there"),
    ):
        sampled(tiny_llama, fake.url, tmp_path)
    assert not (tmp_path / "run" / "round-1" / "rollouts.jsonl").read_bytes()
