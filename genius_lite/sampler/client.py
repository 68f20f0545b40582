"""The sampler as the search sees it: awaitable extensions of a token tree."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from genius_lite.errors import UserError
from genius_lite.sampler.messages import (
    HEADER,
    EngineSettings,
    Extend,
    Extended,
    Failed,
    GiveUp,
    Open,
    Ready,
    Release,
    Request,
    Sampling,
    Score,
    Scored,
    Stats,
    Until,
    body_length,
    decode_reply,
    frame,
)
from genius_lite.sampler.tree import Node

# GNU OpenMP's threads spin for about a millisecond between pieces of work, which starves them as soon as another
# program wants the cores: beside one busy process a core, decoding fell to between 2 and 27 % of its quiet speed. With
# a short spin it keeps 45 %, and loses nothing on a quiet machine. Whoever sets it outside decides.
_SHORT_SPIN = {"GOMP_SPINCOUNT": "1000"}


class SamplerError(RuntimeError):
    """The sampler's process could not start, or ended while it was needed."""


class Sampler(Protocol):
    """What the foresight search needs of a sampler, wherever it runs."""

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        """Sample `n` continuations of a node, up to a step delimiter or to the end, `limit` tokens at most.

        Returns at once; each future gives its node as soon as that branch is finished.
        """
        ...

    def release(self, nodes: Iterable[Node]) -> None:
        """These nodes are not extended again."""
        ...

    def give_up(self, branch: asyncio.Future[Node], total: float) -> None:
        """End the branch, as `dropped`, once its summed log-probability is below `total` nats."""
        ...


class LocalSampler:
    """llama.cpp in a process of its own on this machine; made by `open_sampler`."""

    def __init__(self, process: asyncio.subprocess.Process, sampling: Sampling):
        self.process = process
        self.sampling = sampling
        self._ids = itertools.count()
        self._extensions: dict[tuple[int, int], tuple[Node, asyncio.Future[Node]]] = {}
        self._scores: dict[int, asyncio.Future[list[float]]] = {}
        self._idle: asyncio.Future[Stats] | None = None

    def extend(self, node: Node, n: int, *, until: Until, limit: int) -> list[asyncio.Future[Node]]:
        """See `Sampler.extend`."""
        number, loop = next(self._ids), asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(n)]
        for index, future in enumerate(futures):
            self._extensions[number, index] = (node, future)
        self._send(Extend(number, node.path, node.seeds(until, n), until, limit, self.sampling))
        return futures

    def release(self, nodes: Iterable[Node]) -> None:
        """See `Sampler.release`."""
        self._send(Release([node.path for node in nodes]))

    def give_up(self, branch: asyncio.Future[Node], total: float) -> None:
        """See `Sampler.give_up`."""
        for (number, _), (_, future) in self._extensions.items():
            if future is branch:
                self._send(GiveUp(number, total))
                return

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        """Log-probability (nats) of each response token after the prompt."""
        number = next(self._ids)
        self._scores[number] = asyncio.get_running_loop().create_future()
        self._send(Score(number, prompt, response))
        return await self._scores[number]

    async def settled(self) -> Stats:
        """The worker's totals, once it has nothing left to do."""
        self._idle = asyncio.get_running_loop().create_future()
        self._send(Release([]))  # wakes the worker, which reports whenever it falls idle
        return await self._idle

    def _send(self, request: Request) -> None:
        assert self.process.stdin
        if self.process.returncode is not None:
            raise SamplerError(f"the sampler's process has ended (exit status {self.process.returncode})")
        self.process.stdin.write(frame(request))

    async def _receive(self) -> None:
        """Hand out replies until the worker ends; then nothing may wait for one any more."""
        try:
            while True:
                reply = await _read(self.process)
                if isinstance(reply, Extended):
                    node, future = self._extensions.pop((reply.id, reply.index))
                    if not future.done():
                        future.set_result(node.child(reply.completion))
                elif isinstance(reply, Scored):
                    if not (future := self._scores.pop(reply.id)).done():
                        future.set_result(reply.logprobs)
                elif isinstance(reply, Stats) and self._idle and not self._idle.done():
                    self._idle.set_result(reply)
        except asyncio.IncompleteReadError:
            status = await self.process.wait()
            error = SamplerError(f"the sampler's process ended with exit status {status}; see its log")
            for future in self._waiting():
                if not future.done():
                    future.set_exception(error)

    def _waiting(self) -> list[asyncio.Future]:
        """Every future that a reply is still owed to."""
        idle = [self._idle] if self._idle else []
        return [*(future for _, future in self._extensions.values()), *self._scores.values(), *idle]


@asynccontextmanager
async def open_sampler(
    model: Path, settings: EngineSettings, sampling: Sampling, log: Path
) -> AsyncIterator[LocalSampler]:
    """Start a worker with this GGUF; it ends with the block. What llama.cpp prints goes to the file `log`.

    Raises:
        UserError: the model does not load with these settings.
    """
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "genius_lite.sampler.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**_SHORT_SPIN, **os.environ},
            start_new_session=os.name == "posix",  # Ctrl-C is for the run, which then closes the worker
        )
    sampler = LocalSampler(process, sampling)
    try:
        sampler._send(Open(str(model), settings))
        await _ready(process, log)
        receiver = asyncio.create_task(sampler._receive())
        try:
            yield sampler
        finally:
            receiver.cancel()
    finally:
        await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> Ready:
    try:
        reply = await _read(process)
    except asyncio.IncompleteReadError:
        status = await process.wait()
        raise SamplerError(f"the sampler's process ended with exit status {status}; see {log}") from None
    if isinstance(reply, Failed):
        raise UserError(f"{reply.reason} (llama.cpp's own words are in {log})")
    assert isinstance(reply, Ready)
    return reply


async def _read(process: asyncio.subprocess.Process):
    assert process.stdout
    header = await process.stdout.readexactly(HEADER)
    return decode_reply(await process.stdout.readexactly(body_length(header)))


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Killed rather than asked: it has nothing to save, and a decode under way may take a while."""
    if process.returncode is None:
        process.kill()
    await process.wait()
    # Without this the transport closes itself after the event loop has ended, and complains.
    process._transport.close()  # pyright: ignore[reportAttributeAccessIssue]
