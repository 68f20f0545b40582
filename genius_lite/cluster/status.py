"""The nodes of a cluster, and whether each can sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from genius_lite.cluster.actor import version_differences, versions
from genius_lite.cluster.ray import connected, node_name, on_node
from genius_lite.visible import visible

_PATIENCE = 30.0  # seconds for a node to say its versions


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
        return [_status(ray, node, replies.get(node["NodeID"])) for node in nodes]


def print_status(nodes: list[NodeStatus], console: Console) -> None:
    """Print a table, a row for each node."""
    table = Table("node", "CPUs", "GPUs", "memory", "state")
    for node in nodes:
        row = (node.name, str(node.cpus), str(node.gpus), f"{node.memory / 1e9:.0f} GB", node.state)
        table.add_row(*map(visible, row))
    console.print(table)


def _status(ray: Any, node: dict[str, Any], reply: Any) -> NodeStatus:
    cpus, gpus, memory = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU", "memory"))
    return NodeStatus(node_name(node), cpus, gpus, memory, _state(ray, cpus, reply))


def _state(ray: Any, cpus: int, reply: Any) -> str:
    from ray.exceptions import GetTimeoutError, RayError, TaskUnschedulableError

    if reply is None:
        return "gone"
    if not cpus:
        return "no CPUs for others"
    try:
        return version_differences(ray.get(reply, timeout=_PATIENCE)) or "ready"
    except GetTimeoutError:
        return f"silent for {_PATIENCE:.0f} s"
    except TaskUnschedulableError:
        return "gone"  # the head still lists a node for some seconds after it has lost it
    except RayError as e:
        return "genius-lite is not installed" if "ModuleNotFoundError" in str(e) else type(e).__name__
