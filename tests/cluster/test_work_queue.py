from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from genius_lite.cluster.work_queue import WorkQueue
from genius_lite.errors import Stop
from genius_lite.records import Query
from genius_lite.sampler.interface import SamplerError
from tests.support.hosts import FakeHost

QUERIES = [Query(f"q{n}", f"question {n}", [n]) for n in range(40)]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr("genius_lite.cluster.work_queue._POLL", 0.02)


class Kept:
    """What came of a queue."""

    def __init__(self, stop: Stop | None = None, stop_after: int | None = None):
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.said: list[str] = []
        self.stop, self._stop_after = stop or Stop(), stop_after
        self.queue = WorkQueue(QUERIES, self._finished, self._failed, self.said.append, self.stop)

    def _finished(self, rollout) -> None:
        self.done.append(rollout.query.id)
        self.stop.asked |= len(self.done) == self._stop_after

    def _failed(self, query, reason) -> None:
        self.failed[query.id] = reason

    def run(self, *hosts: FakeHost, later: dict[float, FakeHost] | None = None, patience: float = 5) -> Kept:
        async def everything():
            async with asyncio.TaskGroup() as group:
                serving = [group.create_task(self.queue.serve(host.host)) for host in hosts]

                async def join(after: float, host: FakeHost) -> None:
                    await asyncio.sleep(after)
                    await self.queue.serve(host.host)

                serving += [group.create_task(join(after, host)) for after, host in (later or {}).items()]
                try:
                    await self.queue.join(patience)
                finally:
                    for task in serving:
                        task.cancel()

        try:
            asyncio.run(everything())
        except ExceptionGroup as group:
            (failure,) = group.exceptions
            raise failure from None
        return self


def test_every_query_is_searched_once():
    kept = Kept().run(FakeHost("a"), FakeHost("b", capacity=5))
    assert Counter(kept.done) == Counter(q.id for q in QUERIES)
    assert kept.failed == {} and kept.said == []


def test_slow_hosts_get_fewer():
    fast, slow = FakeHost("fast", 1, seconds=0.002), FakeHost("slow", 1, seconds=0.05)
    kept = Kept().run(fast, slow)
    assert kept.queue.done.total() == len(QUERIES)
    assert kept.queue.done["slow"] < kept.queue.done["fast"] / 2


def test_what_a_lost_host_had_is_searched_elsewhere():
    dying = FakeHost("dying", capacity=4, seconds=0.01, dies_at=7)
    kept = Kept().run(dying, FakeHost("steady", seconds=0.01))
    assert Counter(kept.done) == Counter(q.id for q in QUERIES)
    assert kept.said == ["warning: dying is lost (power cut); its queries are sampled elsewhere"]
    assert set(dying.asked) <= set(kept.done)


def test_a_host_that_joins_later_takes_part():
    kept = Kept().run(FakeHost("first", 1, seconds=0.02), later={0.1: FakeHost("second", 1, seconds=0.02)})
    assert Counter(kept.done) == Counter(q.id for q in QUERIES)
    assert kept.queue.done["second"] > 0


def test_a_round_survives_without_any_host_for_a_while():
    kept = Kept().run(FakeHost("dying", 1, dies_at=3), later={0.3: FakeHost("late", 4)})
    assert Counter(kept.done) == Counter(q.id for q in QUERIES)
    assert kept.queue.done == {"dying": 2, "late": 38}


def test_without_hosts_it_ends_with_a_reason():
    with pytest.raises(SamplerError, match="no host was there to sample for 1 s"):
        Kept().run(FakeHost("dying", 1, dies_at=1), patience=1)


def test_a_search_that_is_not_survived_fails():
    kept = Kept().run(FakeHost("a", poison=frozenset({"q3", "q7"})))
    assert kept.failed == {"q3": "three times", "q7": "three times"}
    assert Counter([*kept.done, *kept.failed]) == Counter(q.id for q in QUERIES)


def test_a_query_that_takes_every_host_with_it_fails():
    class Fatal(FakeHost):
        async def search(self, query):
            self.dies_at = 1 if query.id == "q0" else None
            return await super().search(query)

    kept = Kept().run(*(Fatal(f"h{n}", 1) for n in range(5)), later={0.5: FakeHost("late")})
    assert kept.failed == {"q0": "5 hosts were lost while they searched it"}
    assert Counter(kept.done) == Counter(q.id for q in QUERIES if q.id != "q0")


def test_asked_to_stop_what_is_under_way_goes_on_to_its_end():
    hosts = [FakeHost("a", 2, seconds=0.01), FakeHost("b", 3, seconds=0.01)]
    kept = Kept(stop_after=6).run(*hosts)
    begun = [query for host in hosts for query in host.asked]
    assert Counter(kept.done) == Counter(begun)
    assert 6 <= len(begun) <= 6 + 5


def test_asked_before_it_began_it_does_nothing():
    assert Kept(Stop(asked=True)).run(FakeHost("a")).done == []


def test_a_host_that_is_made_ready_is_waited_for():
    """A model of some gigabytes takes a slow network longer than the watchdog waits for a host."""
    kept = Kept()

    async def arriving():
        with kept.queue.expecting():
            await asyncio.sleep(0.5)
        await kept.queue.serve(FakeHost("slow").host)

    async def everything():
        hosting = asyncio.create_task(arriving())
        await kept.queue.join(0.2)
        hosting.cancel()

    asyncio.run(everything())
    assert Counter(kept.done) == Counter(q.id for q in QUERIES)
