from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from genius_lite.errors import UserError
from genius_lite.sampler.client import SamplerError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node

SETTINGS = EngineSettings(slots=4, context=256, threads=1)
SAMPLING = Sampling(0.9)
ROOT = Node(None, [257, 72, 105, 258], (0, 1, "q"))


async def _grow(path, log) -> tuple[list[int], list[int], list[float]]:
    async with open_sampler(path, SETTINGS, SAMPLING, log) as sampler:
        first, second = [await f for f in sampler.extend(ROOT, 2, until="end", limit=8)]
        (more,) = sampler.extend(first, 1, until="end", limit=5)
        score = await sampler.score(ROOT.tokens, first.tokens)
        return (await more).response, second.tokens, score


def test_a_tree_grows_through_the_worker(tiny_llama, tmp_path):
    response, second, score = asyncio.run(_grow(tiny_llama, tmp_path / "log"))
    assert len(response) <= 13
    assert len(score) <= 8
    assert all(s < 0 for s in score)
    again = asyncio.run(_grow(tiny_llama, tmp_path / "log"))
    assert again[:2] == (response, second)


def test_no_worker_is_left_behind(tiny_llama, tmp_path):
    asyncio.run(_grow(tiny_llama, tmp_path / "log"))
    assert psutil.Process().children() == []


def test_a_model_that_does_not_load_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="cannot load"):
        asyncio.run(_grow(tmp_path / "x.gguf", tmp_path / "log"))


def test_a_killed_worker_fails_what_waits_for_it(tiny_llama, tmp_path):
    async def scenario():
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            os.kill(sampler.process.pid, signal.SIGSTOP)  # so that it cannot be done before it is killed
            futures = sampler.extend(ROOT, 4, until="end", limit=200)
            os.kill(sampler.process.pid, signal.SIGKILL)
            for future in futures:
                with pytest.raises(SamplerError, match="exit status -9"):
                    await future
            with pytest.raises(SamplerError, match="has ended"):
                sampler.extend(ROOT, 1, until="end", limit=2)

    asyncio.run(scenario())
