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

from genius_lite.errors import UserError
from genius_lite.text import first_line

_ANSWERS = 10.0  # seconds for a head to take a connection


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Join the cluster of this address, and give Ray; `auto` is the cluster that this machine belongs to.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
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
        _check_port(address)
        # Of ray:// its server is the driver, elsewhere.
        config: dict[str, Any] = {} if address.startswith("ray://") else {"job_config": NoFolders()}
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **config)
    except (OSError, RuntimeError) as e:
        said = f"no Ray cluster at {address} ({first_line(e)})"
        raise UserError(f"sampler.cluster: {said}; start one with: ray start --head") from e
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray takes it, and would end a run without its farewell
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """See whether anything listens, since Ray itself would go on trying for minutes. Raises OSError if not."""
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()


@dataclass(frozen=True)
class NodeSlot:
    """Room for one host: a node, or one of its GPUs."""

    node: str
    name: str
    cpus: int
    gpus: int


def on_node(node: str) -> Any:
    """Return Ray's scheduling strategy for what has to run on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def node_slots(ray: Any) -> list[NodeSlot]:
    """List the slots of the nodes that are there now. A node without CPUs for others, as a mere head, has none."""
    slots = []
    for node in ray.nodes():
        cpus, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if node["Alive"] and cpus:
            named = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"  # as people know it
            for number in range(max(1, gpus)):
                name = f"{named}, GPU {number}" if gpus > 1 else named
                slots.append(NodeSlot(node["NodeID"], name, max(1, cpus // max(1, gpus)), min(1, gpus)))
    return slots
