"""Which GGUF tensor is which learner tensor, and how their rows are ordered.

llama.cpp reorders the rows of some tensors (q and k of the Llama family, for its rotary embedding). There is no
table of that here: both copies of a tensor are at hand when a model is imported, so the order is recovered by
comparing their rows, for any architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap, get_tensor_name_map

from genius_lite.errors import UserError
from genius_lite.rundir.folder import write_json
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor, shown


@dataclass(frozen=True)
class TensorMap:
    """GGUF name -> (learner's name, index into `permutations` or None where rows stand in the same order).

    Row i of the GGUF tensor is row `permutation[i]` of the learner's.
    """

    tensors: dict[str, tuple[str, int | None]]
    permutations: list[list[int]]

    def rows(self, gguf_name: str) -> list[int] | slice:
        """Return an index that brings the rows of a learner tensor into the GGUF's order."""
        number = self.tensors[gguf_name][1]
        return slice(None) if number is None else self.permutations[number]

    def save(self, path: Path) -> None:
        write_json(path, {"tensors": self.tensors, "permutations": self.permutations})

    @staticmethod
    def load(path: Path) -> TensorMap:
        data = json.loads(path.read_text())
        return TensorMap({k: (v[0], v[1]) for k, v in data["tensors"].items()}, data["permutations"])


def name_map(source: GGUF) -> TensorNameMap:
    """Return gguf's map from the learner's names to those of this model's GGUF."""
    arch = next(a for a, name in MODEL_ARCH_NAMES.items() if name == source.architecture)
    return get_tensor_name_map(arch, source.metadata[f"{source.architecture}.block_count"])


def learner_names(source: GGUF, names: list[str]) -> dict[str, str]:
    """Return GGUF name -> learner's name, for the learner's weight matrices that the GGUF has."""
    names_of = name_map(source)
    found = {names_of.get_name(name, try_suffixes=(".weight",)): name for name in names}
    present = {t.name for t in source.tensors if len(t.shape) == 2}
    return {gguf_name: name for gguf_name, name in found.items() if gguf_name in present}


def match(
    source: GGUF,
    names: dict[str, str],
    learner_rows: Callable[[str], np.ndarray],
    advance: Callable[[int], None] = lambda n: None,
) -> TensorMap:
    """Recover the row order of every tensor in `names`.

    Args:
        names: GGUF name -> learner's name.
        learner_rows: the learner's 16-bit tensor (rows, columns) as a 16-bit numpy array.
        advance: called with 1 after each tensor.

    Raises:
        UserError: a tensor's rows are not those of the learner in any order, or one has a weight that is not finite.
    """
    by_name = {t.name: t for t in source.tensors}
    permutations: list[np.ndarray] = []
    tensors: dict[str, tuple[str, int | None]] = {}
    ambiguous = []
    for gguf_name, name in names.items():
        theirs = learner_rows(name)
        ours = as_float16(source.dequantized(by_name[gguf_name]))
        check_finite(source, by_name[gguf_name], ours)
        ours = ours.view(theirs.dtype)
        if ours.shape != theirs.shape:
            raise UserError(f"{source.path}: {gguf_name} is {ours.shape}, the imported {name} is {theirs.shape}")
        if np.array_equal(ours, theirs):
            tensors[gguf_name] = (name, None)
        elif (number := _known(ours, theirs, permutations)) is not None:
            tensors[gguf_name] = (name, number)
        elif (order := _recover(ours, theirs)) is not None:
            permutations.append(order)
            tensors[gguf_name] = (name, len(permutations) - 1)
        else:
            ambiguous.append((gguf_name, name, ours, theirs))
        advance(1)
    for gguf_name, name, ours, theirs in ambiguous:
        number = _known(ours, theirs, permutations)
        if number is None:
            raise UserError(f"{source.path}: the rows of {gguf_name} are not those of {name} in any one order")
        tensors[gguf_name] = (name, number)
    return TensorMap(tensors, [p.tolist() for p in permutations])


def as_float16(weights: np.ndarray) -> np.ndarray:
    """Round weights as the learner's copy has them; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return weights.astype(np.float16)


def check_finite(source: GGUF, tensor: Tensor, weights: np.ndarray) -> None:
    """Refuse NaN and infinity among some of a tensor's weights.

    Raises:
        UserError: there is one.
    """
    if not np.isfinite(weights).all():
        raise UserError(f"{source.path}: {shown(tensor.name)} holds a weight that is no finite 16-bit number")


def _known(ours: np.ndarray, theirs: np.ndarray, permutations: list[np.ndarray]) -> int | None:
    """Find the permutation of an earlier tensor that fits this one too."""
    for number, order in enumerate(permutations):
        if len(order) == len(ours) and np.array_equal(ours, theirs[order]):
            return number
    return None


def _recover(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray | None:
    """Find the one order in which their rows are ours; None if rows differ, or if equal rows leave a choice."""
    position = {row.tobytes(): i for i, row in enumerate(theirs)}
    order = [position.get(row.tobytes(), -1) for row in ours]
    if len(position) < len(theirs) or sorted(order) != list(range(len(theirs))):
        return None
    return np.array(order)
