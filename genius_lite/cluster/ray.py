"""The driver's side of a Ray cluster: a host on each node or on each of its GPUs, and how the model gets there.

A file travels through Ray's object store in parts. As one object it would be held whole, several gigabytes, by the
driver and again by every node; of parts a node has one in memory, and the store spills the others to disk.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from genius_lite.cluster.actor import HostActor, HostSettings, version_differences
from genius_lite.cluster.nodes import NodeSlot, connected, node_slots, on_node
from genius_lite.cluster.work_queue import Host, HostLostError, WorkQueue
from genius_lite.errors import NonFiniteError, UserError
from genius_lite.foresight.rollouts import first_of
from genius_lite.records import Query, Rollout
from genius_lite.sampler.interface import QueryFailedError, SamplerError
from genius_lite.text import first_line

_PART = 64 << 20  # bytes of a file that travel at once
_TRIES = 3  # hosts in the same slot
_BUSY = 20.0  # seconds after which it is said what a node is waited for
_POLL = 2.0  # seconds between two looks for nodes that have joined


async def sample_on_cluster(address: str, queue: WorkQueue, settings: HostSettings, files: dict[str, Path]) -> None:
    """Search the queries of a queue on the nodes of the Ray cluster at this address.

    Args:
        files: of the policy, by the hashes that `settings` names.

    Raises:
        UserError: there is no such cluster, or the model loads on none of its nodes.
        SamplerError: no host was there for as long as the recipe's watchdog waits.
    """
    with connected(address) as ray:
        try:
            async with asyncio.TaskGroup() as group:
                starting = group.create_task(_start_hosts(ray, settings, files, queue))
                await queue.join(settings.sampler.watchdog)
                starting.cancel()
        except ExceptionGroup as failures:
            cause = first_of(failures)
            if isinstance(cause, (UserError, SamplerError)):
                raise cause from None
            raise


def ray_host(actor: Any, name: str, capacity: int) -> Host:
    """Make a host of an actor that is ready to search."""

    async def search(query: Query) -> Rollout:
        with _ray_errors():
            return await actor.search.remote(query)

    return Host(name, capacity, search)


async def _start_hosts(ray: Any, settings: HostSettings, files: dict[str, Path], queue: WorkQueue) -> None:
    """Start a host in each slot of the nodes that are there and of those that join later; goes on until cancelled.

    Where a host is lost and its node is still there, another one is tried, twice.
    """
    store = _FileStore(ray, files)
    taken: set[NodeSlot] = set()
    tries: Counter[NodeSlot] = Counter()

    async def start(slot: NodeSlot) -> None:
        try:
            host = await _start_host(ray, slot, settings, store, queue)
        except (SamplerError, UserError) as e:
            if isinstance(e, UserError) and not queue.served:  # no node can load it
                raise
            queue.say(f"warning: {slot.name} does not take part: {e}")
        else:
            queue.say(f"sampling on {host.name}, {host.capacity} searches at once")
            await queue.serve(host)
        taken.discard(slot)

    async with asyncio.TaskGroup() as group:
        while True:
            for slot in await asyncio.to_thread(node_slots, ray):  # Ray's own calls block for a moment
                if slot not in taken and tries[slot] < _TRIES:
                    tries[slot] += 1
                    taken.add(slot)
                    group.create_task(start(slot))
            await asyncio.sleep(_POLL)


async def _start_host(ray: Any, slot: NodeSlot, settings: HostSettings, store: _FileStore, queue: WorkQueue) -> Host:
    """Start a host.

    Raises:
        UserError: the model does not load with the recipe's settings.
        HostLostError: this node cannot take part, whatever it is: a full disk, other versions, a file that arrives
            damaged.
    """
    with _ray_errors(starting=True):
        options = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "max_concurrency": 1000}
        actor = ray.remote(HostActor).options(**options, scheduling_strategy=on_node(slot.node)).remote()
        theirs = asyncio.ensure_future(actor.versions.remote())
        _, pending = await asyncio.wait([theirs], timeout=_BUSY)
        if pending:
            wanted = f"{slot.cpus} CPUs" + (f" and {slot.gpus} GPU" if slot.gpus else "")
            queue.say(f"waiting for {wanted} of {slot.name}, which others hold; `ray status` shows them")
        if differences := version_differences(await theirs):
            raise HostLostError(f"it has {differences}; install the same")
        with queue.expecting():  # a large model takes a slow network its time
            await store.send(actor, slot.node)
            capacity = await actor.open.remote(settings, slot.cpus)
        return ray_host(actor, slot.name, capacity)


class _FileStore:
    """Files by their hash, put into Ray's object store when the first node lacks them."""

    def __init__(self, ray: Any, files: dict[str, Path]):
        self._ray, self._files = ray, files
        self._parts: dict[str, asyncio.Task[list[Any]]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # a file travels to a node once

    async def send(self, actor: Any, node: str) -> None:
        """Have the files that the node lacks written to its cache."""
        async with self._locks[node]:
            for name in await actor.missing.remote([*self._files]):
                if name not in self._parts:
                    self._parts[name] = asyncio.create_task(asyncio.to_thread(self._put, self._files[name]))
                try:
                    parts = await self._parts[name]
                except Exception:  # the store may be full for a while: the next node tries anew
                    self._parts.pop(name, None)
                    raise
                await actor.fetch.remote(name, parts)

    def _put(self, path: Path) -> list[Any]:
        with path.open("rb") as file:
            return [self._ray.put(part) for part in iter(partial(file.read, _PART), b"")]


@contextmanager
def _ray_errors(*, starting: bool = False) -> Iterator[None]:
    """Turn Ray's errors for a host that is gone into HostLostError; what its own code raised comes out as it is.

    Args:
        starting: whatever goes wrong there is the node's own, until it has shown that it can search.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as e:
        if isinstance(e.cause, (UserError, QueryFailedError, NonFiniteError)):
            raise e.cause from None
        if starting or isinstance(e.cause, (SamplerError, OSError, MemoryError)):
            raise HostLostError(first_line(e.cause)) from None
        raise
    except RayError as e:
        raise HostLostError(first_line(e)) from None
