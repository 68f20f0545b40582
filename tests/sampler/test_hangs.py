"""Workers that hang: while they load, settle, score or stream; and what of the environment they are told."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import psutil
import pytest

from genius_lite.data.sandbox import environment
from genius_lite.evaluate.measure import EvalModel
from genius_lite.records import PreferencePair
from genius_lite.results.rounds import Stats
from genius_lite.sampler.client import QueryFailedError, open_sampler
from genius_lite.sampler.interface import SamplerError
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.tree import Node
from genius_lite.weights.retained import gaps
from tests.support.stopped import stop

WATCHDOG = 4.0  # seconds: on a busy machine a worker takes two to start
SETTINGS = EngineSettings(slots=2, context=256, threads=1, watchdog=WATCHDOG)
SAMPLING = Sampling(0.9)
ROOT = Node(None, [257, 72, 105, 258], (0, 1, "q"))
DEADLY = 90  # a token at which the worker stands still
IN_THE_WORKER = """
import os, sys, time
if "genius_lite.sampler.worker" in sys.orig_argv:
    from pathlib import Path
    from genius_lite.sampler import engine
    {code}
"""
HANGS_AT = f"""
    submit = engine.Engine.submit
    def standing_still(self, request):
        asked = [*(getattr(request, "path", None) or []), *(getattr(request, "prompt", None) or [])]
        asked += getattr(request, "response", None) or []
        if {DEADLY} in asked:
            time.sleep(600)
        submit(self, request)
    engine.Engine.submit = standing_still
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Have workers begin with this code."""

    def begin(code: str) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(IN_THE_WORKER.format(code=code))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))

    return begin


def test_one_that_stands_still_while_it_settles_is_replaced(tiny_llama, tmp_path):
    async def scenario() -> tuple[Stats, int, list[str]]:
        said: list[str] = []
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log", say=said.append) as sampler:
            await sampler.score(ROOT.tokens, [1, 2])
            await sampler.drain()
            stop(sampler.pid)
            return await sampler.drain(), sampler.restarts, said

    stats, restarts, said = asyncio.run(asyncio.wait_for(scenario(), 120))
    assert (isinstance(stats, Stats), restarts) == (True, 1)
    assert "showed no sign of life for 4 s" in said[0]
    assert psutil.Process().children() == []


def test_one_that_never_settles_ends_the_sampling(tiny_llama, tmp_path, worker):
    worker(
        "report = engine.Engine.stats.fget\n"
        "    engine.Engine.stats = property(lambda self: report(self) if self._totals.sampled else time.sleep(600))"
    )

    async def scenario() -> None:
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            await sampler.drain()

    with pytest.raises(SamplerError, match=r"no sign of life for 4 s, again and again"):
        asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("times", [1, 3])
def test_one_that_stands_still_while_it_loads_is_replaced_twice(tiny_llama, tmp_path, worker, times):
    worker(
        f"begun = Path({str(tmp_path)!r}) / f'begun-{{os.getpid()}}'\n"
        f"    begun.touch()\n"
        f"    if len([*begun.parent.glob('begun-*')]) <= {times}:\n"
        f"        engine.load = lambda *a, **k: time.sleep(600)"
    )
    said: list[str] = []

    async def scenario() -> list[float]:
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log", say=said.append) as sampler:
            return await sampler.score(ROOT.tokens, [1])

    if times == 1:
        assert len(asyncio.run(asyncio.wait_for(scenario(), 120))) == 1
    else:
        with pytest.raises(SamplerError, match="no sign of life for 4 s while it loaded"):
            asyncio.run(asyncio.wait_for(scenario(), 120))
    assert len(said) == min(times, 2)
    assert "no sign of life for 4 s while it loaded" in said[0]
    assert psutil.Process().children() == []


def test_loading_slowly_is_no_standing_still(tiny_llama, tmp_path, worker):
    worker(
        "load = engine.load\n"
        "    def slowly(*a, loading, **k):\n"
        "        for _ in range(20):\n"
        "            time.sleep(0.4)\n"
        "            loading()\n"
        "        return load(*a, loading=loading, **k)\n"
        "    engine.load = slowly"
    )

    async def scenario() -> list[str]:
        said: list[str] = []
        watched = msgspec.structs.replace(SETTINGS, watchdog=6.0)
        async with open_sampler(tiny_llama, watched, SAMPLING, tmp_path / "log", say=said.append) as sampler:
            await sampler.score(ROOT.tokens, [1])
        return said

    assert asyncio.run(scenario()) == []


def test_what_it_stands_still_at_is_set_aside_in_evaluation_too(tiny_llama, tmp_path, worker):
    worker(HANGS_AT)
    said: list[str] = []
    who = EvalModel(tiny_llama, SETTINGS, max_tokens=4, seed=0, samples=1, log=tmp_path / "log", say=said.append)

    async def scenario():
        async with who.sampler() as sampler:
            (bad,) = sampler.extend(Node(None, [257, DEADLY], (0, "bad")), 1, until="end", limit=3)
            (good,) = sampler.extend(ROOT, 1, until="end", limit=3)
            with pytest.raises(QueryFailedError, match="no sign of life for 4 s, three times"):
                await sampler.score([257, 72], [65, DEADLY, 66])
            with pytest.raises(QueryFailedError, match="no sign of life"):
                await bad
            return await good

    assert asyncio.run(asyncio.wait_for(scenario(), 120)).tokens
    assert {"no sign of life" in line for line in said} == {True}


def test_a_pair_that_it_stands_still_at_is_left_out_of_the_check_and_named(tiny_llama, tmp_path, worker):
    worker(HANGS_AT)

    def pair(query: str, token: int) -> PreferencePair:
        return PreferencePair(query, 0, [257, 72], [50, 51], [60, token], 0.0, 0.0, 0.0, 0.0, True, True)

    said: list[str] = []
    pairs = [pair("sound", 61), pair("deadly", DEADLY)]
    found = gaps(tiny_llama, SETTINGS, pairs, tmp_path / "log", said.append)
    alone = gaps(tiny_llama, SETTINGS, pairs[:1], tmp_path / "log")
    assert found[0] == pytest.approx(alone[0], abs=1e-3)
    assert found[1] != found[1]
    assert [line for line in said if "query deadly is not scored" in line and "no sign of life" in line]


def test_a_stream_goes_on_where_it_was_when_its_worker_is_killed(tiny_llama, tmp_path, worker):
    worker(  # or it is over before it can be killed
        "step = engine.Engine.decode_step\n"
        "    engine.Engine.decode_step = lambda self: (time.sleep(0.05), step(self))[1]"
    )

    async def stream(harm: bool) -> list[int]:
        found: list[int] = []
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            async for token in sampler.stream(ROOT, limit=40, sampling=Sampling(1.5)):
                found.append(token)
                if harm and len(found) == 3:
                    os.kill(sampler.pid, signal.SIGKILL)
            assert sampler.restarts == harm
        return found

    whole, harmed = (asyncio.run(stream(harm)) for harm in (False, True))
    assert whole == harmed
    assert len(whole) > 3


@pytest.mark.parametrize("slots", [1, 4])
def test_fewer_branches_have_the_same_room(slots):
    for unified in (False, True):
        settings = EngineSettings(slots=8, parked=8, context=512, threads=1, kv_unified=unified)
        fewer = settings.with_slots(slots)
        assert (fewer.room, fewer.slots, fewer.context) == (settings.room, slots, 512)
    assert EngineSettings(slots=1, context=512, threads=1, kv_unified=True).with_slots(4).room == 512


def test_helpers_get_no_secret_and_no_proxy(tiny_llama, tmp_path, monkeypatch):
    secrets = {
        "GENIUS_LITE_SERVER_KEY": "s", "HF_TOKEN": "s", "AWS_SECRET_ACCESS_KEY": "s", "LLAMA_API_KEY": "s",
        "WANDB_API_KEY": "s", "HTTPS_PROXY": "http://me:s@proxy", "GITHUB_TOKEN": "s", "SSH_AUTH_SOCK": "s",
        "LLAMA_ARG_HF_TOKEN": "s", "DATABASE_URL": "postgres://me:s@h", "OMP_AUTH_COOKIE": "s",
    }  # fmt: skip
    kept = {"OMP_NUM_THREADS": "1", "GGML_TEST": "1", "LC_ALL": "C.UTF-8", "TMPDIR": str(tmp_path)}
    for name, value in (secrets | kept).items():
        monkeypatch.setenv(name, value)
    told = environment()
    assert not secrets.keys() & told.keys()
    assert kept.items() <= told.items()

    async def scenario() -> dict[str, str]:
        async with open_sampler(tiny_llama, SETTINGS, SAMPLING, tmp_path / "log") as sampler:
            await sampler.score(ROOT.tokens, [1])
            return psutil.Process(sampler.pid).environ()

    of_worker = asyncio.run(scenario())
    assert not secrets.keys() & of_worker.keys()
    assert "PATH" in of_worker


def test_a_sandboxed_process_gets_none_either(monkeypatch):
    from genius_lite.data.templates import Renderer

    monkeypatch.setenv("HF_TOKEN", "s")
    renderer = Renderer("{{ messages[0].content }}", {})
    assert renderer.render([{"role": "user", "content": "x"}]) == "x"
    process = renderer._process._process
    assert process
    assert "HF_TOKEN" not in psutil.Process(process.pid).environ()
    renderer.close()


def test_what_is_no_request_ends_the_worker(tiny_llama, tmp_path):
    wrong = msgspec.structs.replace(SETTINGS, draw="both")

    async def scenario() -> None:
        async with open_sampler(tiny_llama, wrong, SAMPLING, tmp_path / "log"):
            pass

    with pytest.raises(SamplerError):
        asyncio.run(asyncio.wait_for(scenario(), 120))
    assert "Invalid enum value 'both'" in (tmp_path / "log").read_text()
    assert psutil.Process().children() == []
