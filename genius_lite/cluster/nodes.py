"""The nodes of a Ray cluster: how to reach them, who of them can sample, and what there is room for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from genius_lite.cluster.actor import version_differences, versions
from genius_lite.errors import UserError
from genius_lite.recipe.sampler import ADDRESSES, is_address
from genius_lite.text import brief, first_line

_ANSWERS = 10.0  # seconds for a head to take a connection
_SILENT = 30.0  # seconds for a node to say its versions


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Join the cluster of this address, and give Ray; `auto` is the cluster that this machine belongs to.

    Raises:
        UserError: Ray is not installed, it is no address, or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("sampler.cluster needs Ray: pip install 'ray>=2.40'") from None
    from ray.job_config import JobConfig

    class NoFolders(JobConfig):
        """Keeps the working directory, in which anything may lie, off the path of the nodes' modules."""

        def _runtime_env_has_working_dir(self) -> bool:
            return True

    terminated = signal.getsignal(signal.SIGTERM)
    try:
        if address != "auto":  # does anything listen there? Ray itself would go on trying for minutes
            if not is_address(address):
                raise UserError(f"{brief(address)} is no address; write {ADDRESSES}")
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
        # Of ray:// its server is the driver, elsewhere.
        config: dict[str, Any] = {} if address.startswith("ray://") else {"job_config": NoFolders()}
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **config)
    except (OSError, RuntimeError, UnicodeError) as e:  # the last: what no host is called
        said = f"no Ray cluster at {address} ({first_line(e)})"
        raise UserError(f"sampler.cluster: {said}; start one with: ray start --head") from e
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray takes it, and would end a run without its farewell
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class NodeSlot:
    """Room for one host: a node, or one of its GPUs."""

    node: str
    name: str
    cpus: int
    gpus: int


def node_name(node: dict[str, Any]) -> str:
    """Name a node as people know it."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def on_node(node: str) -> Any:
    """Return Ray's scheduling strategy for what has to run on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def node_slots(ray: Any) -> list[NodeSlot]:
    """List the slots of the nodes that are there now. A node without CPUs for others, as a mere head, has none."""
    slots = []
    for node in ray.nodes():
        cpus, gpus = _amounts(node, "CPU", "GPU")
        if node["Alive"] and cpus:
            for number in range(max(1, gpus)):
                name = f"{node_name(node)}, GPU {number}" if gpus > 1 else node_name(node)
                slots.append(NodeSlot(node["NodeID"], name, max(1, cpus // max(1, gpus)), min(1, gpus)))
    return slots


@dataclass(frozen=True)
class NodeStatus:
    """`memory` is bytes; `state` is `ready`, or what is in the way."""

    name: str
    cpus: int
    gpus: int
    memory: int
    state: str


def node_statuses(address: str) -> list[NodeStatus]:
    """Look at every node of the cluster, at those that are gone too.

    Raises:
        UserError: as `connected`.
    """
    with connected(address) as ray:
        task = ray.remote(versions)
        nodes = sorted(ray.nodes(), key=lambda node: node["NodeManagerAddress"])
        alive = [node["NodeID"] for node in nodes if node["Alive"]]
        replies = {node: task.options(num_cpus=0, scheduling_strategy=on_node(node)).remote() for node in alive}
        statuses = []
        for node in nodes:
            cpus, gpus, memory = _amounts(node, "CPU", "GPU", "memory")
            state = _state(ray, cpus, replies.get(node["NodeID"]))
            statuses.append(NodeStatus(node_name(node), cpus, gpus, memory, state))
        return statuses


def _state(ray: Any, cpus: int, reply: Any) -> str:
    from ray.exceptions import GetTimeoutError, RayError, TaskUnschedulableError

    if reply is None:
        return "gone"
    if not cpus:
        return "no CPUs for others"
    try:
        return version_differences(ray.get(reply, timeout=_SILENT)) or "ready"
    except GetTimeoutError:
        return f"silent for {_SILENT:.0f} s"
    except TaskUnschedulableError:
        return "gone"  # the head still lists a node for some seconds after it has lost it
    except RayError as e:
        return "genius-lite is not installed" if "ModuleNotFoundError" in str(e) else type(e).__name__


def _amounts(node: dict[str, Any], *kinds: str) -> list[int]:
    return [int(node["Resources"].get(kind, 0)) for kind in kinds]
