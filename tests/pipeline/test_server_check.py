"""A round that a server samples: with the round's model behind it, and with another one."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.pipeline.round import Policy
from genius_lite.pipeline.stages import sample
from genius_lite.recipe import Evaluate, Foresight, Model, Queries, Recipe, Sampler, Server
from genius_lite.records import Rollout
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import open_run
from genius_lite.rundir.lines import read_records
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Sampling
from tests.support.engine import extend
from tests.support.http import FakeServer
from tests.support.models import ANY_PAIRS, questions, tiny_gguf


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
def listening(gguf: Path) -> Iterator[FakeServer]:
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


def sampled(gguf: Path, url: str, folder: Path, then: Path | None = None) -> tuple[list[Rollout], list[str]]:
    """The rollouts of a round, and what was said meanwhile: of the first, or of a second one that samples `then`."""
    recipe = Recipe(
        out=str(folder / "run"),
        model=Model(gguf=str(gguf)),
        queries=Queries(source=questions(folder, 6)),
        foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=20),
        pairs=ANY_PAIRS,
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=2, threads=1, server=Server(url=url, in_flight=4, retries=1)),
    )
    progress, said = TerminalProgress(Console(quiet=True)), []
    progress.say = said.append
    with open_run(recipe, progress) as session:
        r = session.round(1)
        policy = Policy(r.job.source.path)
        if then:
            shutil.copy(then, r.here / "policy.gguf")
            r, policy = session.round(2), Policy(r.here / "policy.gguf", r.here / "adapter")
        sample(r, policy)
        return read_records(r.here / "rollouts.jsonl", Rollout), said


def test_a_server_with_the_rounds_model_samples_it(tiny_llama, tmp_path):
    with listening(tiny_llama) as fake:
        found, said = sampled(tiny_llama, fake.url, tmp_path)
    assert len({r.query.id for r in found}) == 6
    (line,) = [line for line in said if "samples" in line]
    apart, rounding = map(float, re.findall(r"\d\.\d{4}", line))
    assert apart < 0.001
    assert rounding < 0.05


def test_one_with_another_model_is_refused(tiny_llama, tmp_path):
    tiny_gguf(tmp_path / "other.gguf", "llama", seed=8)
    with (
        listening(tmp_path / "other.gguf") as fake,
        pytest.raises(UserError, match=r"holds another model: \d\.\d+ nats .* load .*\.gguf there"),
    ):
        sampled(tiny_llama, fake.url, tmp_path)
    assert not (tmp_path / "run" / "round-1" / "rollouts.jsonl").read_bytes()


def moved(gguf: Path, out: Path, by: float) -> Path:
    """The model after so little learning that it stays within what a server may be off; `by` says how much."""
    shutil.copy(gguf, out)
    rng = np.random.default_rng(0)
    for tensor in GGUFReader(out, "r+").tensors:
        if tensor.data.dtype == np.float16:
            tensor.data[:] += by * rng.standard_normal(tensor.data.shape).astype(np.float16)
    return out


def test_the_model_of_the_round_before_is_refused_however_little_was_learned(tiny_llama, tmp_path):
    tuned = moved(tiny_llama, tmp_path / "tuned.gguf", 0.0003)
    refused = rf"round 2: .* holds {re.escape(str(tiny_llama))} still; load .*policy\.gguf there"
    with listening(tiny_llama) as fake, pytest.raises(UserError, match=refused):
        sampled(tiny_llama, fake.url, tmp_path, tuned)
    with listening(tuned) as fake:
        found, said = sampled(tiny_llama, fake.url, tmp_path, tuned)
    assert len(found) == 6
    assert not [line for line in said if "warning" in line]


def test_where_two_models_cannot_be_told_apart_a_warning_says_which_it_has_to_be(tiny_llama, tmp_path):
    between, tuned = (moved(tiny_llama, tmp_path / f"{by}.gguf", by) for by in (0.00015, 0.0003))
    with listening(between) as fake:
        found, said = sampled(tiny_llama, fake.url, tmp_path, tuned)
    assert len(found) == 6
    (line,) = [line for line in said if "warning" in line]
    assert re.search(rf"{re.escape(str(tiny_llama))} cannot be told, .* it has to be .*policy\.gguf$", line)
