"""The driver's side of a Ray cluster: its nodes, their hosts, and the model on its way to them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from genius_lite.cluster.handout import HostLostError
from genius_lite.cluster.host import NodeHost, Searched, Work, decode_outcome, encode, other_versions
from genius_lite.errors import UserError
from genius_lite.records import Query, Rollout
from genius_lite.sampler.client import QueryFailedError
from genius_lite.sampler.process import SamplerError

_PART = 64 << 20  # bytes of a file that travel at once
_TRIES = 3  # hosts in the same place
_PATIENCE = 10.0  # seconds for a head to answer
_LOOK = 2.0  # seconds between two looks for nodes that have joined


Doors = defaultdict[str, asyncio.Lock]
"""One lock for each node: a file travels to a node once, though several GPUs of it ask."""


@dataclass(frozen=True)
class Place:
    """Where one host fits: a node, or one of its GPUs."""

    node: str
    name: str
    cpus: int
    gpus: int


class RayHost:
    """A host on a node, once it is ready to search."""

    def __init__(self, actor: Any, name: str, capacity: int):
        self.actor, self.name, self.capacity = actor, name, capacity

    async def search(self, query: Query) -> Rollout:
        """See `handout.Host.search`."""
        with _losses():
            outcome = decode_outcome(await self.actor.search.remote(encode(query)))
        if isinstance(outcome, Searched):
            return outcome.rollout
        raise QueryFailedError(outcome.reason)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, joined to the cluster of this address; `auto` is the one that this machine belongs to.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("sampler.cluster needs Ray: pip install 'genius-lite[ray]'") from None
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError) as e:
        reason = str(e).strip().split("\n")[0]
        said = f"no Ray cluster at {address} ({reason})"
        raise UserError(f"sampler.cluster: {said}; start one with: ray start --head") from e
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray takes it, and would end a run without its farewell
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody listens: Ray itself would go on trying for minutes.

    Raises:
        OSError: nobody does.
    """
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


def name_of(node: dict[str, Any]) -> str:
    """A node as people know it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def only_on(node: str) -> Any:
    """Ray's word for where something has to run."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def places(ray: Any) -> list[Place]:
    """Where hosts fit among the nodes that are there now. A node without CPUs for others, as a mere head, has none."""
    found = []
    for node in ray.nodes():
        cpus, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if not node["Alive"] or not cpus:
            continue
        name = name_of(node)
        for number in range(max(1, gpus)):
            of = f"{name}, GPU {number}" if gpus > 1 else name
            found.append(Place(node["NodeID"], of, max(1, cpus // max(1, gpus)), min(1, gpus)))
    return found


async def recruit(
    ray: Any,
    work: Work,
    files: dict[str, Path],
    say: Callable[[str], None],
    employ: Callable[[RayHost], Awaitable[None]],
) -> None:
    """Employ each host as it gets ready, of the nodes that are there and of those that join later; for ever.

    Args:
        files: what `work` names, by its hash.
        say: told in one line who takes part, and who cannot.
        employ: returns when the host is lost; where its node is still there, another one is tried, twice.

    Raises:
        UserError: the model does not load with the recipe's settings.
    """
    shelf = Shelf(ray, files)
    doors: Doors = defaultdict(asyncio.Lock)
    employed: set[Place] = set()
    tries: Counter[Place] = Counter()

    async def start(place: Place) -> None:
        try:
            host = await _started(ray, place, replace(work, cpus=place.cpus), shelf, doors)
        except SamplerError as e:
            say(f"warning: {place.name} does not take part: {e}")
        else:
            say(f"sampling on {host.name}, {host.capacity} searches at once")
            await employ(host)
        employed.discard(place)

    async with asyncio.TaskGroup() as group:
        while True:
            for place in await asyncio.to_thread(places, ray):  # Ray's own calls block for a moment
                if place not in employed and tries[place] < _TRIES:
                    tries[place] += 1
                    employed.add(place)
                    group.create_task(start(place))
            await asyncio.sleep(_LOOK)


class Shelf:
    """Files in Ray's object store, in parts; put there when the first node lacks them."""

    def __init__(self, ray: Any, files: dict[str, Path]):
        self.files = files
        self._ray = ray
        self._parts: dict[str, list[Any]] = {}

    async def parts(self, name: str) -> list[Any]:
        """References to the parts of the file of this hash, in order."""
        if name not in self._parts:
            self._parts[name] = await asyncio.to_thread(self._put, self.files[name])
        return self._parts[name]

    def _put(self, path: Path) -> list[Any]:
        with path.open("rb") as file:
            return [self._ray.put(part) for part in iter(partial(file.read, _PART), b"")]


async def _started(ray: Any, place: Place, work: Work, shelf: Shelf, doors: Doors) -> RayHost:
    with _losses():
        options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_concurrency": 1000}
        actor = ray.remote(NodeHost).options(**options, scheduling_strategy=only_on(place.node)).remote()
        if other := other_versions(await actor.versions.remote()):
            raise HostLostError(f"it has {other}; install the same")
        async with doors[place.node]:
            for name in shelf.files:
                if not await actor.holds.remote(name):
                    parts = await shelf.parts(name)
                    for number, part in enumerate(parts):
                        last = number == len(parts) - 1
                        await actor.receive.remote(name, part, first=number == 0, last=last)
        return RayHost(actor, place.name, await actor.open.remote(work))


@contextmanager
def _losses() -> Iterator[None]:
    """Ray's words for a host that is gone, as ours; what its own code raised comes out as it is."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as e:
        if isinstance(e.cause, SamplerError):
            raise HostLostError(str(e.cause)) from None
        if isinstance(e.cause, UserError):
            raise e.cause from None
        raise
    except RayError as e:
        raise HostLostError(str(e).strip().split("\n")[0]) from None
