"""Hosts that take their time and search nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from genius_lite.cluster.work_queue import Host, HostLostError
from genius_lite.records import Candidate, Completion, Query, Rollout, Step
from genius_lite.sampler.interface import QueryFailedError


def rollout_of(query: Query) -> Rollout:
    step = Completion([1, 2], [-0.1, -0.2], "end")
    return Rollout(query, [Step(0, [Candidate(0, step, None, -0.15, -0.15)], [0])])


@dataclass
class FakeHost:
    """Takes `seconds` a query; is lost with its `dies_at`-th, and does not survive the queries in `poison`."""

    name: str
    capacity: int = 2
    seconds: float = 0.0
    dies_at: int | None = None
    poison: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    @property
    def host(self) -> Host:
        """It, as a queue takes it."""
        return Host(self.name, self.capacity, self.search)

    async def search(self, query: Query) -> Rollout:
        self.asked.append(query.id)
        if self.dies_at is not None and len(self.asked) >= self.dies_at:
            raise HostLostError("power cut")
        await asyncio.sleep(self.seconds)
        if query.id in self.poison:
            raise QueryFailedError("three times")
        return rollout_of(query)
