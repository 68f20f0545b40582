"""Training state on disk, so that an interrupted training goes on exactly: tensors as safetensors, numbers as JSON.

Nothing draws random numbers while training goes on (there is no dropout), and the order of the data comes from the seed
alone; so the adapter, the optimizer's state and the number of updates done are all that there is. It is the same for
all processes of a group, so that any number of them can go on from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from genius_lite.errors import UserError
from genius_lite.rundir.disk import remove
from genius_lite.rundir.documents import read_typed
from genius_lite.rundir.folder import RunDir, write_json
from genius_lite.text import brief

_CURVE = {"pairs", "loss", "margin", "grad_norm", "lr"}  # what a row of it has
_BLOCK = 256  # numbers that share a scale in bitsandbytes' 8 bits


class TrainingProgress(msgspec.Struct):
    """What a state has beside tensors: a row of the curve for each update, and the largest pack that fits, tokens.

    `limit` is None as long as memory did not run out: then the recipe's, which may be another by now, holds.
    """

    curve: list[dict[str, int | float]]
    limit: Annotated[int, msgspec.Meta(ge=1)] | None
    optimizer: dict[str, int | float] = {}


def save_state(work: RunDir, policy: Any, optimizer: torch.optim.Optimizer, progress: TrainingProgress) -> None:
    """Keep the state after the updates of the curve; the one before is deleted when this one is on disk."""
    state = {f"{i}.{k}": v for i, values in optimizer.state_dict()["state"].items() for k, v in _flat(values)}
    tensors = {name: v for name, v in state.items() if torch.is_tensor(v)}
    numbers = {name: v for name, v in state.items() if name not in tensors}

    def write(folder: Path) -> None:
        folder.mkdir()
        save_file({n: p.detach().contiguous() for n, p in _trainable(policy).items()}, folder / "adapter.safetensors")
        # Copies: bitsandbytes' table of the 256 values of 8 bits is one tensor for all parameters.
        save_file({name: v.contiguous().clone() for name, v in tensors.items()}, folder / "optimizer.safetensors")
        write_json(folder / "progress.json", msgspec.structs.replace(progress, optimizer=numbers))

    kept = work.build(f"update-{len(progress.curve):06d}", write)
    for other in work.path.glob("update-*"):
        if other != kept:
            remove(other)


def load_state(
    work: RunDir, policy: Any, optimizer: torch.optim.Optimizer, updates: Sequence[int]
) -> TrainingProgress | None:
    """Put the latest state into policy and optimizer; what it has beside tensors, or None if there is none.

    `updates` says how many pairs each update of this training learns from.

    Raises:
        UserError: it cannot be one of this training: it was damaged, or another's, or put there by somebody.
    """
    if not (folder := _latest(work)):
        return None
    progress, parameters = _progress(folder), _trainable(policy)
    adapter, kept = (read_tensors(folder / f"{name}.safetensors") for name in ("adapter", "optimizer"))
    if [row["pairs"] for row in progress.curve] != [*updates[: len(progress.curve)]]:
        raise no_state(folder, "its updates learned from other pairs")
    if {name: p.shape for name, p in parameters.items()} != {name: tensor.shape for name, tensor in adapter.items()}:
        raise no_state(folder, "it is of another adapter")
    state: dict[int, dict[str, Any]] = {}
    for key, value in (kept | progress.optimizer).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index) if index.isdecimal() else -1, {})[name] = value
    sizes = [p.numel() for p in optimizer.param_groups[0]["params"]]
    if not all(0 <= index < len(sizes) and _fits(values, sizes[index]) for index, values in state.items()):
        raise no_state(folder, "it is of another optimizer")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def no_state(folder: Path, why: str) -> UserError:
    """Say that a folder of a training's state is none of this training's, and what to do."""
    return UserError(f"{folder} cannot be gone on from: {why}; delete {folder.parent} to train this round anew")


def pairs_done(work: RunDir) -> int:
    """Count the pairs that the updates of the latest state have learned from."""
    folder = _latest(work)
    return int(sum(row["pairs"] for row in _progress(folder).curve)) if folder else 0


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a parameter's state, with what bitsandbytes hides in a dict of its own beside the rest, as it loads too."""
    for name, value in values.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def _fits(values: dict[str, Any], size: int) -> bool:
    """Say whether this can be the state of a parameter of so many numbers, of AdamW or of bitsandbytes' 8-bit one."""
    sizes = {"step": 1, "exp_avg": size, "exp_avg_sq": size}
    if "state1" in values:
        eight = getattr(values["state1"], "dtype", None) == torch.uint8
        in_8_bits = {"qmap1": 256, "qmap2": 256, "absmax1": -(-size // _BLOCK), "absmax2": -(-size // _BLOCK)}
        sizes = {"step": 1, "state1": size, "state2": size, **(in_8_bits if eight else {})}
    found = {name: value.numel() if torch.is_tensor(value) else 1 for name, value in values.items()}
    return found == sizes


def _latest(work: RunDir) -> Path | None:
    """Return the latest state that is whole."""
    found = {int(name[1]): p for p in work.path.glob("update-*") if (name := re.fullmatch(r"update-(\d{1,9})", p.name))}
    return found[max(found)] if found else None


def _progress(folder: Path) -> TrainingProgress:
    found = read_typed(folder / "progress.json", TrainingProgress)
    if not found:
        raise no_state(folder, "progress.json is missing, or damaged")
    if not all(row.keys() >= _CURVE and all(map(math.isfinite, row.values())) for row in found.curve):
        raise no_state(folder, "its curve lacks figures, or has some that are not finite")
    return found


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read finite tensors.

    Raises:
        UserError: the file is none of safetensors, or a number is not finite.
    """
    try:
        # Copies: an optimizer goes on with what it is given, and a file that is mapped cannot be deleted on Windows.
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as e:
        raise no_state(path.parent, f"{path.name} cannot be read ({brief(str(e), 200)})") from None
    if bad := next((name for name, tensor in found.items() if not tensor.isfinite().all()), None):
        raise no_state(path.parent, f"{path.name}: {brief(bad, 100)} is not finite")
    return found


def _trainable(policy: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}
