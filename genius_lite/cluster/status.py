"""The nodes of a cluster, and whether each can sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from genius_lite.cluster.host import other_versions, versions
from genius_lite.cluster.ray import connected, name_of, only_on
from genius_lite.text import visible

_PATIENCE = 30.0  # seconds for a node to say its versions


@dataclass(frozen=True)
class NodeStatus:
    """`memory` is bytes; `state` is `ready`, or what is in the way."""

    name: str
    cpus: int
    gpus: int
    memory: int
    state: str


def look(address: str) -> list[NodeStatus]:
    """Every node of the cluster, those that are gone too.

    Raises:
        UserError: as `connected`.
    """
    with connected(address) as ray:
        nodes = sorted(ray.nodes(), key=lambda node: node["NodeManagerAddress"])
        asked = {node["NodeID"]: _ask(ray, node["NodeID"]) for node in nodes if node["Alive"]}
        return [_status(ray, node, asked.get(node["NodeID"])) for node in nodes]


def print_status(nodes: list[NodeStatus], console: Console) -> None:
    """A table, a row for each node."""
    table = Table("node", "CPUs", "GPUs", "memory", "state")
    for node in nodes:
        row = (node.name, str(node.cpus), str(node.gpus), f"{node.memory / 1e9:.0f} GB", node.state)
        table.add_row(*map(visible, row))
    console.print(table)


def _ask(ray: Any, node: str) -> Any:
    return ray.remote(versions).options(num_cpus=0, scheduling_strategy=only_on(node)).remote()


def _status(ray: Any, node: dict[str, Any], asked: Any) -> NodeStatus:
    resources = node["Resources"]
    cpus, gpus, memory = (int(resources.get(kind, 0)) for kind in ("CPU", "GPU", "memory"))
    return NodeStatus(name_of(node), cpus, gpus, memory, _state(ray, cpus, asked))


def _state(ray: Any, cpus: int, asked: Any) -> str:
    from ray.exceptions import GetTimeoutError, RayError, TaskUnschedulableError

    if asked is None:
        return "gone"
    if not cpus:
        return "no CPUs for others"
    try:
        return other_versions(ray.get(asked, timeout=_PATIENCE)) or "ready"
    except GetTimeoutError:
        return f"silent for {_PATIENCE:.0f} s"
    except TaskUnschedulableError:
        return "gone"  # the head still lists a node for some seconds after it has lost it
    except RayError as e:
        return "genius-lite is not installed" if "ModuleNotFoundError" in str(e) else type(e).__name__
