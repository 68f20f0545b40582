"""Queries pulled by whoever searches: a host takes the next one when it has finished one, so slow hosts get fewer.

Hosts may join at any time, which `ray.util.ActorPool` does not know. What a lost host had under way is handed out
again, and comes out the same, because a search's generators are named by its query (see `sampler/tree.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from genius_lite.errors import Stop
from genius_lite.foresight.rollouts import first_of
from genius_lite.records import Query, Rollout
from genius_lite.sampler.interface import QueryFailedError, SamplerError

_POLL = 0.5  # seconds between two looks at whether to stop, and whether any host is left
_MOST_LOSSES = 5  # hosts that a query may lose before it is held to be the cause


class HostLostError(SamplerError):
    """This host samples no more."""


@dataclass(frozen=True)
class Host:
    """A machine, or a GPU of one, that searches `capacity` queries at once.

    `search` raises QueryFailedError where the host does not survive a query, HostLostError where the host is gone.
    """

    name: str
    capacity: int
    search: Callable[[Query], Awaitable[Rollout]]


class WorkQueue:
    """The queries of a round that wait or are under way.

    Args:
        finished, failed, stop: as in `foresight.rollouts.sample_rollouts`.
        say: told in one line which hosts take part, and which are lost.
    """

    def __init__(
        self,
        queries: Iterable[Query],
        finished: Callable[[Rollout], None],
        failed: Callable[[Query, str], None],
        say: Callable[[str], None],
        stop: Stop,
    ):
        self._waiting: asyncio.Queue[Query] = asyncio.Queue()
        for query in queries:
            self._waiting.put_nowait(query)
        self._finished, self._failed, self.say, self._stop = finished, failed, say, stop
        self._under_way = 0
        self._losses: Counter[str] = Counter()
        self._hosts = 0  # that search, or will
        self.done: Counter[str] = Counter()
        """Queries by the name of the host that searched them."""

    async def serve(self, host: Host) -> None:
        """Let a host search until it is lost; ends by cancellation."""
        with self.expecting():
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(host.capacity):
                        group.create_task(self._pull(host))
            except* HostLostError as lost:
                self.say(f"warning: {host.name} is lost ({first_of(lost)}); its queries are sampled elsewhere")

    @property
    def served(self) -> bool:
        """Whether a host is there or expected, or was there."""
        return self._hosts > 0 or bool(self.done)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Count a host as there while it searches, or is made ready to."""
        self._hosts += 1
        try:
            yield
        finally:
            self._hosts -= 1

    async def join(self, patience: float) -> None:
        """Wait until nothing is left to do, or to go on with after a stop.

        Args:
            patience: seconds without any host after which to give up.

        Raises:
            SamplerError: there was no host for so long.
        """
        alone = 0.0
        while self._under_way or not (self._stop.asked or self._waiting.empty()):
            await asyncio.sleep(_POLL)
            alone = 0.0 if self._hosts else alone + _POLL
            if alone > patience and not self._stop.asked:
                raise SamplerError(f"no host was there to sample for {patience:.0f} s")

    async def _pull(self, host: Host) -> None:
        while True:
            query = await self._waiting.get()
            if self._stop.asked:
                self._waiting.put_nowait(query)
                return
            self._under_way += 1
            try:
                rollout = await host.search(query)
            except QueryFailedError as e:
                self._failed(query, str(e))
            except (HostLostError, asyncio.CancelledError):  # another task may have learned of the loss first
                self._losses[query.id] += 1
                if self._losses[query.id] < _MOST_LOSSES:
                    self._waiting.put_nowait(query)
                else:
                    self._failed(query, f"{_MOST_LOSSES} hosts were lost while they searched it")
                raise
            else:
                self._finished(rollout)
                self.done[host.name] += 1
            finally:
                self._under_way -= 1
