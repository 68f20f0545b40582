"""Training state on disk, so that an interrupted training goes on exactly: tensors as safetensors, numbers as JSON.

Nothing draws random numbers while training goes on (there is no dropout), and the order of the data comes from the seed
alone; so the adapter, the optimizer's state and the number of updates done are all that there is. It is the same for
all processes of a group, so that any number of them can go on from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from genius_lite.rundir.disk import remove
from genius_lite.rundir.folder import RunDir, write_json


def save_state(work: RunDir, update: int, policy: Any, optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Keep the state after `update` updates; the one before is deleted when this one is on disk.

    Args:
        progress: what else is needed to go on, as JSON.
    """
    state = {f"{i}.{k}": v for i, values in optimizer.state_dict()["state"].items() for k, v in _flat(values)}
    tensors = {name: v for name, v in state.items() if torch.is_tensor(v)}
    numbers = {name: v for name, v in state.items() if name not in tensors}

    def write(folder: Path) -> None:
        folder.mkdir()
        save_file({n: p.detach().contiguous() for n, p in _trainable(policy).items()}, folder / "adapter.safetensors")
        # Copies: bitsandbytes' table of the 256 values of 8 bits is one tensor for all parameters.
        save_file({name: v.contiguous().clone() for name, v in tensors.items()}, folder / "optimizer.safetensors")
        write_json(folder / "progress.json", {"update": update, "optimizer": numbers, **progress})

    kept = work.build(f"update-{update:06d}", write)
    for other in work.path.glob("update-*"):
        if other != kept:
            remove(other)


def load_state(work: RunDir, policy: Any, optimizer: torch.optim.Optimizer) -> dict | None:
    """Put the latest state into policy and optimizer; its progress, or None if there is none."""
    if not (folder := _latest(work)):
        return None
    adapter, progress = load_file(folder / "adapter.safetensors"), _progress(folder)
    with torch.no_grad():
        for name, parameter in _trainable(policy).items():
            parameter.copy_(adapter[name])
    state: dict[int, dict[str, Any]] = {}
    for key, value in (load_file(folder / "optimizer.safetensors") | progress["optimizer"]).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def pairs_done(work: RunDir) -> int:
    """Count the pairs that the updates of the latest state have learned from."""
    folder = _latest(work)
    return int(sum(row["pairs"] for row in _progress(folder)["curve"])) if folder else 0


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a parameter's state, with what bitsandbytes hides in a dict of its own beside the rest, as it loads too."""
    for name, value in values.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def _latest(work: RunDir) -> Path | None:
    """Return the latest state that is whole."""
    return max((p for p in work.path.glob("update-*") if p.suffix != ".partial"), default=None)


def _progress(folder: Path) -> dict:
    return json.loads((folder / "progress.json").read_text(encoding="utf-8"))


def _trainable(policy: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}
