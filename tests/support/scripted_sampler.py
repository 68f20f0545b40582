"""A scripted sampler: what is sampled after a path is written down, so a search can be followed by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from genius_lite.records import Completion
from genius_lite.sampler.messages import Until
from genius_lite.sampler.tree import Node


class ScriptedSampler:
    """`script[until, response tokens]` lists the completions of that node, in order.

    `slowest_first` lets later branches finish before earlier ones.
    """

    def __init__(self, script: dict[tuple[str, tuple[int, ...]], list[Completion]], slowest_first: bool = False):
        self.script = script
        self.slowest_first = slowest_first
        self.calls: list[tuple[str, tuple[int, ...], int, int]] = []
        self.released: list[list[int]] = []

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        self.calls.append((until, tuple(node.response), n, limit))
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(n)]
        for i, (future, completion) in enumerate(zip(futures, self.script[until, tuple(node.response)], strict=True)):
            delay = 0.001 * ((n - i) if self.slowest_first else i)
            loop.call_later(delay, future.set_result, node.child(completion))
        return futures

    def release(self, nodes: Iterable[Node]) -> None:
        self.released += [node.response for node in nodes]

    async def drain(self) -> None:
        pass
