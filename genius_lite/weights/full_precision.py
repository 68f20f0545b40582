"""Full-precision weights for a quantized GGUF: safetensors, written as a GGUF with the metadata of the quantized one.

From there on it is an import like any other. Names come from gguf-py's own map. The rows of a quantized tensor are
the full-precision rows with rounding on them, so that their order is found by similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import quantize

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor
from genius_lite.weights.mapping import learner_names

_ALIKE = 0.7  # cosine of a row with itself after rounding; Q2_K leaves 0.95, other rows are near 0
_SAMPLED_ROWS = 512
_FILE_TYPE = {T.F16: 1, T.BF16: 32}  # llama_ftype: mostly F16, mostly BF16


def write_full_precision(source: GGUF, folder: Path, out: Path, advance: Callable[[int], None]) -> None:
    """Write the matrices of `folder` (safetensors) under the GGUF's names, everything else from `source`.

    Stacked experts and vectors stay those of `source`; vectors are not quantized in a GGUF.

    Args:
        advance: called with bytes as they are written.

    Raises:
        UserError: the safetensors are of another model: no matrix fits, or a name, a shape or the rows differ.
    """
    weights = Safetensors(folder)
    names = learner_names(source, weights.matrices)
    if not names:
        raise UserError(f"{folder}: none of its tensors is one of {source.path}; are they the same model?")
    orders: list[np.ndarray] = []

    def data(target: Tensor) -> Iterator[np.ndarray]:
        tensor = by_name[target.name]
        if target.name not in names:
            for rows in tensor.blocks():
                same = tensor.type == target.type
                yield (
                    source.raw_rows(tensor, rows)
                    if same
                    else quantize(source.dequantized_rows(tensor, rows), target.type)
                )
            return
        theirs = weights.matrix(names[target.name])
        if theirs.shape != tensor.shape:
            raise UserError(
                f"{folder}: {names[target.name]} is {theirs.shape}, {target.name} of {source.path} {tensor.shape}"
            )
        order = _order(source, tensor, theirs, orders, names[target.name], folder)
        for rows in tensor.blocks():
            yield quantize(theirs[rows] if order is None else theirs[order[rows]], target.type)

    by_name = {t.name: t for t in source.tensors}
    types = {name: T.BF16 if weights.in_bf16(theirs) else T.F16 for name, theirs in names.items()}
    most = T.BF16 if T.BF16 in types.values() else T.F16

    def wanted(t: Tensor) -> T:
        return t.type if len(t.shape) == 1 or t.type == T.F32 else types.get(t.name, most)

    targets = [replace(t, type=wanted(t)) for t in source.tensors]
    gguf_file.write(out, source, targets, data, {"general.file_type": _FILE_TYPE[most]}, advance)


class Safetensors:
    """The matrices of a model's safetensors, in one file or several with an index.

    Raises:
        UserError: there are none.
    """

    def __init__(self, folder: Path):
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        if index.is_file():
            # Names in the index come from somebody else's file; only those beside it are meant.
            self.files = {name: folder / Path(file).name for name, file in _placed(index).items()}
        elif single.is_file():
            with _open(single) as tensors:
                self.files = dict.fromkeys(tensors.keys(), single)
        else:
            raise UserError(f"{folder}: no model.safetensors here, and no model.safetensors.index.json")
        if missing := sorted({path.name for path in self.files.values() if not path.is_file()}):
            raise UserError(f"{folder}: the index names {missing[0]}, which is not there")
        self.matrices = [name for name in self.files if name.endswith(".weight") and len(self._slice(name)[1]) == 2]
        if not self.matrices:
            raise UserError(f"{folder}: its safetensors hold no matrix")

    def in_bf16(self, name: str) -> bool:
        """Say whether a matrix is bfloat16, which F16 does not hold at full range; nothing else is written as BF16."""
        return self._slice(name)[0] == "BF16"

    def matrix(self, name: str) -> np.ndarray:
        """Read a matrix as float32 (rows, columns)."""
        with _open(self.files[name]) as tensors:
            return tensors.get_tensor(name).float().numpy()

    def _slice(self, name: str) -> tuple[str, list[int]]:
        with _open(self.files[name]) as tensors:
            found = tensors.get_slice(name)
            return found.get_dtype(), found.get_shape()


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _placed(index: Path) -> dict[str, str]:
    """Find the file that each tensor is in, by the name in the index."""
    try:
        return msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{index}: no index of safetensors: {e}") from None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    # numpy knows no bfloat16; torch does.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: no safetensors file, or a broken one: {e}") from None


def _order(
    source: GGUF, tensor: Tensor, theirs: np.ndarray, orders: list[np.ndarray], name: str, folder: Path
) -> np.ndarray | None:
    """Find which of their rows each row of the GGUF's tensor is; None where they stand in the same order.

    Args:
        orders: those found before, tried first and added to.
    """
    sample = np.linspace(0, tensor.rows - 1, min(_SAMPLED_ROWS, tensor.rows)).astype(int)
    ours = np.concatenate([source.dequantized_rows(tensor, slice(row, row + 1)) for row in sample])
    if _cosine(ours, theirs[sample]) > _ALIKE:
        return None
    for order in orders:
        if len(order) == tensor.rows and _cosine(ours, theirs[order[sample]]) > _ALIKE:
            return order
    found = (_unit(source.dequantized(tensor)) @ _unit(theirs).T).argmax(1)
    if len(set(found.tolist())) < len(found) or _cosine(ours, theirs[found[sample]]) <= _ALIKE:
        raise UserError(f"{folder}: the rows of {name} are not those of {tensor.name} in {source.path}")
    orders.append(found)
    return found


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Average over the rows that are not zero."""
    products = (_unit(ours) * _unit(theirs)).sum(1)
    return float(products[np.abs(theirs).sum(1) > 0].mean())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
