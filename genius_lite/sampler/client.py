"""The sampler as the search sees it: awaitable extensions of a token tree.

A worker that dies or hangs is replaced, and what it has not answered is asked again: a request holds its whole path and
its seeds, so the answer is drawn by the same random numbers, and another one only where rounding makes it so. What was
under way in two such failures is then asked alone, one after the other; whatever fails a third time is the cause, and
is given up.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import UserError
from genius_lite.results.rounds import Stats
from genius_lite.sampler.interface import QueryFailedError, SamplerError
from genius_lite.sampler.messages import (
    Drain,
    Drained,
    Drawn,
    EngineSettings,
    Extend,
    Extended,
    Release,
    Reply,
    Sampling,
    Score,
    Scored,
    Until,
)
from genius_lite.sampler.process import Worker
from genius_lite.sampler.tree import Node

_STARTS = 3  # of a worker that ends, or hangs, while it loads
_ISOLATE_AFTER = 2  # failures after which a request is asked alone
_MOST_CONSECUTIVE = 3  # requests that failed with none answered in between: it is not they that are at fault


@dataclass(eq=False)
class PendingRequest:
    """A reply that somebody waits for: of one branch (the `index`-th seed of its request), or of a score."""

    request: Extend | Score
    index: int
    node: Node | None
    future: asyncio.Future[Any]
    heard: Callable[[Drawn], None] = lambda drawn: None
    failures: int = 0
    key: tuple[int, int] | None = None  # under which the worker answers; None while it was not asked


class LocalSampler:
    """llama.cpp in a process of its own here; made by `open_sampler`. `restarts` counts replaced workers."""

    def __init__(
        self, start: Callable[[], Awaitable[Worker]], sampling: Sampling, patience: float, say: Callable[[str], None]
    ):
        self.sampling = sampling
        self.restarts = 0
        self._start, self._patience, self._say = start, patience, say
        self._worker: Worker | None = None
        self._ids = itertools.count()
        self._pending: dict[PendingRequest, None] = {}  # in the order of asking
        self._asked: dict[tuple[int, int], PendingRequest] = {}
        self._isolated: deque[PendingRequest] = deque()  # while there are some, only the first is asked
        self._consecutive_failures = 0
        self._drains: deque[asyncio.Future[Stats]] = deque()  # a worker answers them in order
        self._broken: BaseException | None = None

    @property
    def pid(self) -> int:
        """Return the process id of the worker."""
        assert self._worker
        return self._worker.process.pid

    def extend(
        self,
        node: Node,
        n: int,
        *,
        until: Until,
        limit: int,
        sampling: Sampling | None = None,
        likeliest: bool = False,
    ) -> list[asyncio.Future[Node]]:
        """See `Sampler.extend`; `sampling` replaces the session's own for this request, `likeliest` adds that, first.

        Futures raise QueryFailedError if this request makes the worker fail, SamplerError if nothing can be sampled.
        """
        seeds = [*[None] * likeliest, *node.seeds(until, n)]
        request = Extend(0, node.path, seeds, until, limit, sampling or self.sampling)
        return self._submit(request, [node] * len(seeds))

    async def stream(self, node: Node, *, limit: int, sampling: Sampling) -> AsyncIterator[int]:
        """Yield the tokens of a response as they are drawn, an end token too; raises as the futures of `extend` do."""
        drawn: asyncio.Queue[int | None] = asyncio.Queue()
        told = 0

        def heard(one: Drawn) -> None:
            nonlocal told
            if one.position == told:  # a worker that replaces another one begins anew
                drawn.put_nowait(one.token)
                told += 1

        request = Extend(0, node.path, [*node.seeds("end", 1)], "end", limit, sampling, streamed=True)
        (done,) = self._submit(request, [node], heard)
        done.add_done_callback(lambda _: drawn.put_nowait(None))
        while (token := await drawn.get()) is not None:
            yield token
        done.result()

    async def score(self, prompt: list[int], response: list[int]) -> list[float]:
        """Return the log-probability (nats) of each response token after the prompt."""
        (scored,) = self._submit(Score(0, prompt, response), [None])
        return await scored

    def release(self, nodes: Iterable[Node]) -> None:
        """See `Sampler.release`."""
        if self._worker and not self._broken:
            self._worker.send(Release([node.path for node in nodes]))

    async def drain(self) -> Stats:
        """Wait until the worker has nothing left to do; return its totals, of the last one if there were several."""
        if self._broken:
            raise self._broken
        stats = asyncio.get_running_loop().create_future()
        self._drains.append(stats)
        if self._worker:
            self._worker.send(Drain())
        return await stats

    # -- asking --------------------------------------------------------------------------------------------

    def _submit(
        self,
        request: Extend | Score,
        nodes: Sequence[Node | None],
        heard: Callable[[Drawn], None] = lambda drawn: None,
    ) -> list[asyncio.Future[Any]]:
        """Ask for a reply for each of these nodes: what the request extends, or None for a score."""
        if self._broken:
            raise self._broken
        loop = asyncio.get_running_loop()
        added = [PendingRequest(request, index, node, loop.create_future(), heard) for index, node in enumerate(nodes)]
        self._pending.update(dict.fromkeys(added))
        self._ask()
        return [pending.future for pending in added]

    def _ask(self) -> None:
        """Send what was not sent yet, the branches of one request together; only the first suspect if there are any."""
        if not self._worker:
            return
        while self._isolated and self._isolated[0].key is None and self._isolated[0].future.done():
            del self._pending[self._isolated.popleft()]  # given up: not worth a worker
        waiting = [self._isolated[0]] if self._isolated else list(self._pending)
        unsent = (pending for pending in waiting if pending.key is None)
        for _, group in itertools.groupby(unsent, key=lambda pending: id(pending.request)):
            branches, number = list(group), next(self._ids)
            request = msgspec.structs.replace(branches[0].request, id=number)
            if isinstance(request, Extend):
                request = msgspec.structs.replace(request, seeds=[request.seeds[branch.index] for branch in branches])
            for place, pending in enumerate(branches):
                pending.key = (number, place)
                self._asked[pending.key] = pending
            self._worker.send(request)

    # -- answers -------------------------------------------------------------------------------------------

    async def serve(self, worker: Worker) -> None:
        """Hand out replies for ever, of this worker and of those that replace it when it fails."""
        try:
            while True:
                self._worker = worker
                self._ask()
                for _ in self._drains:
                    worker.send(Drain())
                try:
                    while True:
                        self._deliver(await worker.reply_within(self._patience, self._owed))
                except SamplerError as failure:
                    failed = failure
                finally:
                    self._worker = None
                    await worker.stop()
                self._on_worker_failure(failed)
                worker = await self._start()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._broken = error  # nothing may wait for ever for a reply that no one reads
            for future in [*(pending.future for pending in self._pending), *self._drains]:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, (SamplerError, UserError)):
                raise

    def _owed(self) -> bool:
        return bool(self._pending or self._drains)

    def _deliver(self, reply: Reply) -> None:
        if isinstance(reply, Drained) and not (stats := self._drains.popleft()).done():
            stats.set_result(reply.stats)
        if isinstance(reply, Drawn):
            self._asked[reply.id, reply.index].heard(reply)
        if not isinstance(reply, (Extended, Scored)):
            return
        pending = self._asked.pop((reply.id, reply.index if isinstance(reply, Extended) else 0))
        del self._pending[pending]
        self._consecutive_failures = 0
        if not pending.future.done():
            if isinstance(reply, Extended):
                assert pending.node
                pending.future.set_result(pending.node.child(reply.completion))
            else:
                pending.future.set_result(reply.logprobs)
        if self._isolated and pending is self._isolated[0]:
            self._isolated.popleft()
            self._ask()

    # -- failures ------------------------------------------------------------------------------------------

    def _on_worker_failure(self, failure: SamplerError) -> None:
        """Count the failure to whatever was asked, and give up what failed alone.

        Raises:
            SamplerError: failures do not depend on what is asked.
        """
        self.restarts += 1
        self._say(f"warning: {failure}; starting it again (its log has more)")
        alone = self._isolated[0] if self._isolated else None
        for pending in [pending for pending in self._pending if pending.future.done()]:
            del self._pending[pending]  # given up in the meantime
        for pending in self._pending:
            pending.failures += pending.key is not None
            pending.key = None
        self._asked.clear()
        if alone and (alone not in self._pending or alone.failures <= _ISOLATE_AFTER):
            alone = None
        if alone or not self._pending:  # with nothing asked of it, it only had to say what it did
            self._consecutive_failures += 1
        if self._consecutive_failures >= _MOST_CONSECUTIVE:
            raise SamplerError(f"{failure}, again and again; see its log")
        if alone:
            alone.future.set_exception(QueryFailedError(f"{failure}, three times"))
            del self._pending[alone]
        self._isolated = deque(pending for pending in self._pending if pending.failures >= _ISOLATE_AFTER)


@asynccontextmanager
async def open_sampler(
    model: Path,
    settings: EngineSettings,
    sampling: Sampling,
    log: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[LocalSampler]:
    """Start a worker with this GGUF; it ends with the block. What llama.cpp prints goes to the file `log`.

    `say` is told of every failure, in one line.

    Raises:
        UserError: the model does not load with these settings.
        SamplerError: the worker ends, or hangs, while it loads the model, three times.
    """

    async def start() -> Worker:
        for _ in range(_STARTS - 1):
            try:
                return await Worker.start(model, settings, log)
            except SamplerError as e:  # it was killed while it loaded, as for want of memory, or hung
                say(f"warning: {e}; starting it again")
        return await Worker.start(model, settings, log)

    first, sampler = await start(), LocalSampler(start, sampling, settings.watchdog, say)
    serving = asyncio.create_task(sampler.serve(first))
    try:
        yield sampler
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await first.stop()  # if the block ended before the task began, nobody else has
        if not serving.cancelled():
            serving.result()
