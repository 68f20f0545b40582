"""What the foresight search needs of a sampler, wherever it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from genius_lite.results.rounds import Stats
from genius_lite.sampler.messages import Until
from genius_lite.sampler.tree import Node

T = TypeVar("T")


class SamplerError(RuntimeError):
    """The sampler's process could not start, or ended or fell silent while it was needed."""


class QueryFailedError(SamplerError):
    """This request made the worker fail three times, the last time alone."""


class Sampler(Protocol):
    """Samples continuations of a token tree."""

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        """Sample `n` continuations of a node, up to a step delimiter or to the end, `limit` tokens at most.

        Returns at once; each future gives its node as soon as that branch is finished.
        """
        ...

    def release(self, nodes: Iterable[Node]) -> None:
        """Say that these nodes are not extended again."""
        ...

    async def drain(self) -> Stats | None:
        """Return what was done in all, once nothing is left to do; None where a sampler does not tell."""
        ...


async def all_or_none(requests: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for what a query asks; as soon as one fails, or nobody waits any more, the others are given up.

    Those that nobody wants any more would else be asked alone, one by one, as suspects of a worker's failure.
    """
    asked = [asyncio.ensure_future(request) for request in requests]
    try:
        return list(await asyncio.gather(*asked))
    finally:
        for request in asked:
            request.cancel()


def run_until_complete(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where this thread has a loop that runs, as in a notebook: in another thread."""

    def run() -> T:
        # A notebook on Windows sets a policy whose loops start no process.
        with asyncio.Runner(loop_factory=getattr(asyncio, "ProactorEventLoop", None)) as runner:
            return runner.run(work)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()
