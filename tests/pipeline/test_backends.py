"""A backend of one's own: a sampler that wraps another, and a line in `REMOTE`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from genius_lite.pipeline import backends
from genius_lite.pipeline.backends import REMOTE, Search
from genius_lite.pipeline.stages import sample
from genius_lite.progress import Stage
from genius_lite.recipe import Evaluate, Foresight, Model, Queries, Recipe, Sampler, Server
from genius_lite.report.terminal import TerminalProgress
from genius_lite.results.rounds import Stats
from genius_lite.run import open_run
from genius_lite.rundir.reader import RoundFolder
from genius_lite.sampler import client
from genius_lite.sampler.client import open_sampler
from genius_lite.sampler.messages import Sampling, Until
from genius_lite.sampler.tree import Node
from tests.support.models import ANY_PAIRS, questions


class Wrapped:
    """Passes everything on, and counts what is asked."""

    def __init__(self, inner: client.Sampler):
        self.inner, self.branches = inner, 0

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        self.branches += n
        return self.inner.extend(node, n, until=until, limit=limit)

    def release(self, nodes: Iterable[Node]) -> None:
        self.inner.release(nodes)

    async def drain(self) -> Stats | None:
        return await self.inner.drain()


@pytest.fixture
def lent(monkeypatch) -> list[Wrapped]:
    """The samplers of a backend that a recipe asks for by a key which is lent to it, `prefill_chunk`."""
    opened = []

    async def on_wrapped(s: Search) -> Stats | None:
        settings, sampling = s.policy.settings(s.r.engine), Sampling.of(s.r.job.recipe.foresight)
        async with open_sampler(s.policy.gguf, settings, sampling, s.r.sampler_log) as inner:
            opened.append(Wrapped(inner))
            return await s.sample_with(opened[-1], 2)

    monkeypatch.setitem(backends.REMOTE, "prefill_chunk", on_wrapped)
    places = Sampler.places() | {"prefill_chunk": 128}
    monkeypatch.setattr(Sampler, "places", lambda *_: places)
    return opened


def test_a_wrapped_sampler_tells_what_it_did_like_any_other(tiny_llama: Path, tmp_path: Path, lent: list[Wrapped]):
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source=questions(tmp_path, 4)),
        foresight=Foresight(beams=1, candidates=2, steps=2, max_tokens=20),
        pairs=ANY_PAIRS,
        evaluate=Evaluate(queries=0),
        sampler=Sampler(slots=2, threads=1, prefill_chunk=64),
    )
    with open_run(recipe, TerminalProgress(Console(quiet=True))) as session:
        r = session.round(1)
        assert len(sample(r, session.own)) == 4
    (sampler,) = lent
    assert sampler.branches > 4
    timing = RoundFolder(1, r.here.path).total(Stage.ROLLOUTS)
    assert timing and timing.sampler and timing.sampler.sampled > 0
    rollouts = RoundFolder(1, r.here.path).made().rollouts
    assert rollouts and rollouts.tokens_per_s and rollouts.tokens_per_s > 0


def test_plans_know_it_by_its_key(lent: list[Wrapped]):
    assert Sampler().elsewhere == []
    assert Sampler(prefill_chunk=64).elsewhere == ["prefill_chunk"]
    assert Sampler(cluster="auto").elsewhere == ["cluster"]
    assert Sampler(server=Server(url="http://h:1")).elsewhere == ["server"]
    with pytest.raises(ValidationError, match=r"prefill_chunk and sampler\.cluster are two places to sample in"):
        Sampler(cluster="auto", prefill_chunk=64)


def test_every_place_to_sample_in_has_its_backend():
    assert {*REMOTE} == {*Sampler.places()}
