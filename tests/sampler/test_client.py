from __future__ import annotations

import asyncio
import os
import signal
import time

import msgspec
import psutil
import pytest

from genius_lite.errors import UserError
from genius_lite.foresight.rollouts import sample_rollouts
from genius_lite.recipe import Foresight
from genius_lite.records import Query
from genius_lite.sampler import process
from genius_lite.sampler.client import QueryFailedError, SamplerError, open_sampler
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from tests.support.stopped import stop

SETTINGS = EngineSettings(slots=4, context=256, threads=1)
SAMPLING = Sampling(0.9)
ROOT = Node(None, [257, 72, 105, 258], (0, 1, "q"))
POISON = Node(None, [257] * 256, (0, 1, "poison"))  # longer than the context: the worker ends with an error


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
    assert psutil.Process().children() == []


async def _sample(path, log, *, harm=None, patience=60.0):
    """Twelve branches of three roots and a score; `harm(pid)` is done to the worker while it owes them all."""
    said = []
    roots = [Node(None, [257, 72, 105 + i, 258], (0, 1, f"q{i}")) for i in range(3)]
    # One branch at a time: in company llama.cpp rounds otherwise, and where two tokens meet a draw may change.
    alone = msgspec.structs.replace(SETTINGS, slots=1, watchdog=patience)
    async with open_sampler(path, alone, SAMPLING, log, say=said.append) as sampler:
        await sampler.score(ROOT.tokens, [1, 2])
        if harm:
            stop(sampler.pid)  # so that it cannot be done before it is harmed
        futures = [f for root in roots for f in sampler.extend(root, 4, until="end", limit=40)]
        score = asyncio.ensure_future(sampler.score(ROOT.tokens, [1, 2, 3]))
        if harm:
            harm(sampler.pid)
        nodes = [node.completion for node in await asyncio.gather(*futures)]
        return nodes, await score, sampler.restarts, said


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda pid: os.kill(pid, signal.SIGKILL), "was killed by SIGKILL"),
        (lambda pid: [os.kill(pid, s) for s in (signal.SIGABRT, signal.SIGCONT)], "was killed by SIGABRT"),
        (lambda pid: None, "showed no sign of life for 2 s"),
    ],
    ids=["killed", "aborted", "hanging"],
)
def test_a_worker_that_fails_is_replaced_and_everything_is_sampled_as_if_nothing_had_been(
    tiny_llama, tmp_path, harm, words
):
    expected = asyncio.run(_sample(tiny_llama, tmp_path / "log"))
    found = asyncio.run(_sample(tiny_llama, tmp_path / "log", harm=harm, patience=2.0))
    assert [c.tokens for c in found[0]] == [c.tokens for c in expected[0]]
    assert found[1] == pytest.approx(expected[1], abs=1e-3)
    assert (expected[2], found[2]) == (0, 1)
    assert words in found[3][0]
    assert psutil.Process().children() == []


def test_what_fails_three_times_is_set_aside_and_the_rest_goes_on(tiny_llama, tmp_path):
    async def scenario():
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            before = sampler.extend(ROOT, 3, until="end", limit=60)
            (poison,) = sampler.extend(POISON, 1, until="end", limit=5)
            after = sampler.extend(ROOT, 2, until="step", limit=20)
            with pytest.raises(QueryFailedError, match=", three times"):
                await poison
            nodes = await asyncio.gather(*before, *after)
            (later,) = sampler.extend(nodes[0], 1, until="end", limit=4)
            await later
            await sampler.drain()
            return [node.completion.finish for node in nodes], sampler.restarts

    finishes, restarts = asyncio.run(scenario())
    assert len(finishes) == 5
    assert {*finishes} <= {"end", "length", "step"}
    assert restarts == 3


def test_a_worker_that_can_do_nothing_ends_the_sampling(tiny_llama, tmp_path):
    async def scenario():
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            poison = [sampler.extend(POISON, 1, until="end", limit=5)[0] for _ in range(5)]
            found = await asyncio.gather(*poison, return_exceptions=True)
            assert {type(e) for e in found} == {QueryFailedError, SamplerError}
            with pytest.raises(SamplerError, match="again and again"):
                sampler.extend(ROOT, 1, until="end", limit=2)
            with pytest.raises(SamplerError, match="again and again"):
                await sampler.drain()

    asyncio.run(scenario())


def test_time_that_this_process_did_not_run_is_not_held_against_the_worker(tiny_llama, tmp_path):
    async def scenario():
        watched = msgspec.structs.replace(SETTINGS, watchdog=2.0)
        async with open_sampler(tiny_llama, watched, SAMPLING, tmp_path / "log") as sampler:
            await sampler.score(ROOT.tokens, [1])
            stop(sampler.pid)
            futures = sampler.extend(ROOT, 2, until="end", limit=5)
            await asyncio.sleep(0.1)
            time.sleep(3)  # as if it were suspended: the event loop stands still
            os.kill(sampler.pid, signal.SIGCONT)
            await asyncio.gather(*futures)
            return sampler.restarts

    assert asyncio.run(scenario()) == 0


def test_a_long_log_makes_room(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_LARGEST_LOG", 10)
    log = tmp_path / "log"
    log.write_text("old words\n" * 3)
    asyncio.run(_grow(tiny_llama, log))
    assert (tmp_path / "log.1").read_text() == "old words\n" * 3
    assert "old words" not in log.read_text()


@pytest.mark.parametrize("cheaper", [{}, {"steps": 0}, {"skip_agreeing": 0.9}])
def test_a_query_that_kills_the_worker_is_set_aside_with_all_its_branches(tiny_llama, tmp_path, cheaper):
    """Its other branches are given up with the first: asked alone, one by one, they would end the sampling."""
    cfg = Foresight(beams=1, candidates=6, max_tokens=20, **{"steps": 1, **cheaper})
    queries = [Query("poison", "", POISON.path), *(Query(f"q{n}", "", [*ROOT.path, n]) for n in range(3))]
    done, failed = [], []

    async def scenario() -> int:
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            await sample_rollouts(
                queries, sampler, cfg, (0, 1), 2, lambda r: done.append(r.query.id), lambda q, why: failed.append(q.id)
            )
            return sampler.restarts

    assert asyncio.run(scenario()) == 3
    assert failed == ["poison"]
    assert sorted(done) == ["q0", "q1", "q2"]
