"""Which GGUF tensor is which learner tensor, and how their rows and columns are ordered.

llama.cpp reorders the rows of some tensors (q and k of the Llama family, for its rotary embedding), the columns of
others, splits what transformers fused (gate and up, one behind the other or in turns), and transposes stacks of
experts. There is no table of that here: both copies of a tensor are at hand when a model is imported, so where it
stands is found by comparing their rows, for any architecture. gguf-py's names say where to look first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap, get_tensor_name_map

from genius_lite.errors import UserError
from genius_lite.progress import Advance
from genius_lite.rundir.documents import read_typed
from genius_lite.rundir.folder import write_json
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor, shown

TELLING = 16  # columns from which a row is told from others by its numbers
_ALIKE = 0.7  # cosine of a row with itself after rounding; Q2_K leaves 0.95, other rows are near 0
_AS_LONG = 0.4  # by which the logarithm of a row's length may differ after rounding
_ODD = 0.02  # of the rows that may be less alike: those that rounding leaves nothing of
_SAMPLED_ROWS = 512
_BLOCK = 1024  # rows that are compared with all others at once


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a GGUF tensor stands in the learner's tensor `name`; of a stack (experts, rows, columns) in each matrix.

    `rows` and `columns` are numbers of the map's orders; None: all of them as they stand. `transposed` comes first.
    """

    name: str
    rows: int | None = None
    columns: int | None = None
    transposed: bool = False


class TensorMap(msgspec.Struct, frozen=True, dict=True):
    """GGUF name -> place. Row i of the GGUF's tensor is row `orders[place.rows][i]` of the learner's, columns alike."""

    tensors: dict[str, Place]
    orders: list[list[int]]

    @cached_property
    def of_learner(self) -> dict[str, list[str]]:
        """Learner's name -> GGUF names, several where the learner has fused them."""
        found: dict[str, list[str]] = {}
        for gguf_name, place in self.tensors.items():
            found.setdefault(place.name, []).append(gguf_name)
        return found

    def take(self, gguf_name: str, theirs: Any) -> Any:
        """Bring a learner tensor, (..., rows, columns) as an array of numpy or torch, into the GGUF's order."""
        place = self.tensors[gguf_name]
        theirs = theirs.swapaxes(-1, -2) if place.transposed else theirs
        return theirs[..., self._order(place.rows), :][..., self._order(place.columns)]

    def rows(self, gguf_name: str) -> list[int] | slice:
        """Return an index that brings rows of the learner's, (rows, ...), into the GGUF's order."""
        return self._order(self.tensors[gguf_name].rows)

    def columns(self, gguf_name: str) -> list[int] | slice:
        """Return an index that brings columns of the learner's, (columns, ...), into the GGUF's order."""
        return self._order(self.tensors[gguf_name].columns)

    def _order(self, number: int | None) -> list[int] | slice:
        return slice(None) if number is None else self.orders[number]

    def _is_sound(self) -> bool:
        """Say whether every order is there, and has each row once; Python would count a negative one from the end."""
        used = {n for place in self.tensors.values() for n in (place.rows, place.columns) if n is not None}
        sound = all(min(order, default=0) >= 0 and len({*order}) == len(order) for order in self.orders)
        return sound and used <= {*range(len(self.orders))}

    def save(self, path: Path) -> None:
        write_json(path, self)

    @staticmethod
    def load(path: Path) -> TensorMap:
        """Read a map that `save` wrote.

        Raises:
            UserError: it is none.
        """
        if (found := read_typed(path, TensorMap)) and found._is_sound():
            return found
        raise UserError(f"{path} is missing, or damaged; delete {path.parent} to import the model anew")


def name_map(source: GGUF, blocks: int = 0) -> TensorNameMap:
    """Return gguf's map from the learner's names to those of this model's GGUF, or of one with more blocks."""
    arch = next(a for a, name in MODEL_ARCH_NAMES.items() if name == source.architecture)
    return get_tensor_name_map(arch, max(blocks, source.metadata[f"{source.architecture}.block_count"]))


class Identical:
    """Rows are the same numbers, in 16 bits; both copies are torch tensors of two axes."""

    def same(self, ours: Any, theirs: Any, order: np.ndarray | None) -> bool:
        """Say whether our rows are theirs in this order; None: as they stand."""
        return bool((ours == (theirs if order is None else theirs[order])).all())

    def order(self, ours: Any, theirs: Any) -> np.ndarray | None:
        """Find the one order in which their rows are ours; None if some are not there, or leave a choice."""
        position = {row.tobytes(): i for i, row in enumerate(theirs.numpy())}
        order = [position.get(row.tobytes(), -1) for row in ours.numpy()]
        if len(position) < len(theirs) or -1 in order or len(set(order)) < len(order):
            return None
        return np.array(order)


class Rounded:
    """Our rows are theirs after quantization: each is far more like its own than like any other."""

    def same(self, ours: Any, theirs: Any, order: np.ndarray | None) -> bool:
        sample = np.linspace(0, len(ours) - 1, min(_SAMPLED_ROWS, len(ours))).astype(int)
        mine, other = ours[sample].float(), theirs[sample if order is None else order[sample]].float()
        held = mine.any(1)
        alike = (_unit(mine) * _unit(other)).sum(1) > _ALIKE
        # Of Falcon-H1's kind converters multiply the weights: with the original ones a file would be another model.
        alike &= (mine.norm(dim=1) / other.norm(dim=1)).log().abs() < _AS_LONG
        return bool((~alike[held]).float().mean() <= _ODD) and bool(held.any())

    def order(self, ours: Any, theirs: Any) -> np.ndarray | None:
        import torch

        theirs = _unit(theirs).T
        found = []
        for start in (0, *range(8, len(ours), _BLOCK)):
            likeness, nearest = (_unit(ours[start : start + _BLOCK if start else 8]) @ theirs).max(1)
            if likeness.median() <= _ALIKE:
                return None
            found.append(nearest)
        order = torch.cat(found).numpy()
        return None if len(np.unique(order)) < len(order) else order


def match(
    source: GGUF,
    weights: Mapping[str, Any],
    like: Identical | Rounded,
    where: Path,
    advance: Advance = lambda n: None,
) -> TensorMap:
    """Find each matrix and stack of matrices of the GGUF among the learner's; those that it lacks are left out.

    Args:
        weights: the learner's name -> its torch tensor.
        where: what the learner's weights are from, for messages.
        advance: called with 1 after each of them.

    Raises:
        UserError: a tensor that the learner has by name has other rows or another shape there, or holds a weight that
            is no finite 16-bit number.
    """
    theirs = {name: weight for name, weight in weights.items() if weight.ndim in (2, 3)}
    by_name = _by_name(source, [name for name, weight in theirs.items() if weight.ndim == 2])
    tensors: dict[str, Place] = {}
    orders: list[np.ndarray] = []
    claimed = dict.fromkeys(theirs, 0)

    def found(tensor: Tensor, candidates: list[str]) -> bool:
        ours = _read(source, tensor)
        for name in candidates:
            if place := next(_places(name, ours, theirs[name], orders, like), None):
                tensors[tensor.name] = place
                claimed[name] += tensor.rows * tensor.columns
                return True
        return False

    ours = [t for t in source.tensors if len(t.shape) in (2, 3) and (t.columns >= TELLING or t.name in by_name)]
    # What has a name first: where rows leave a choice, the orders of the others decide, and fewer are left to search.
    left = []
    for tensor in (t for t in ours if t.name in by_name):
        if not found(tensor, [by_name[tensor.name]]):
            left.append(tensor)
        advance(1)
    for tensor in left:
        name = by_name[tensor.name]
        if not found(tensor, [name]):
            raise UserError(
                f"{where}: the rows of {name} {list(theirs[name].shape)} are not those of {shown(tensor.name)} "
                f"{list(tensor.shape)} in {source.path}, in any one order; are they the same model?"
            )
    for tensor in (t for t in ours if t.name not in by_name):
        free = [name for name in theirs if claimed[name] < theirs[name].numel()]
        found(tensor, sorted(free, key=lambda name: layer_of(name) != layer_of(tensor.name)))
        advance(1)
    return TensorMap(tensors, [order.tolist() for order in orders])


def _by_name(source: GGUF, names: list[str]) -> dict[str, str]:
    """Return GGUF name -> learner's name, for the learner's weight matrices that the GGUF has by gguf-py's map."""
    names_of = name_map(source)
    found = {names_of.get_name(name, try_suffixes=(".weight",)): name for name in names if name.endswith(".weight")}
    present = {t.name for t in source.tensors if len(t.shape) == 2}
    return {gguf_name: name for gguf_name, name in found.items() if gguf_name in present}


def layer_of(name: str) -> str:
    """Return the number of the layer that a tensor of either is in, as it is written; empty if in none."""
    return next((part for part in name.split(".") if part.isdigit()), "")


def _read(source: GGUF, tensor: Tensor) -> Any:
    """Read a tensor in float16, a few rows at a time."""
    import torch

    held = np.empty((tensor.rows, tensor.columns), np.float16)
    for rows in tensor.blocks():
        held[rows] = as_float16(source.dequantized(tensor, rows)).reshape(-1, tensor.columns)
        check_finite(source, tensor, held[rows])
    return torch.from_numpy(held.reshape(tensor.shape))


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


def _places(name: str, ours: Any, theirs: Any, orders: list[np.ndarray], like: Identical | Rounded) -> Iterator[Place]:
    """Find our tensor in theirs: a part of its rows, or all of it with its columns in another order."""
    if ours.ndim != theirs.ndim or (ours.ndim == 3 and len(ours) != len(theirs)):
        return
    for transposed, turned in ((False, theirs), (True, theirs.mT)):
        for rows in _fitting(ours, turned, orders, like):
            yield Place(name, rows, None, transposed)
        if ours.shape == turned.shape:
            for columns in _fitting(ours.mT, turned.mT, orders, like):
                yield Place(name, None, columns, transposed)


def _fitting(ours: Any, theirs: Any, orders: list[np.ndarray], like: Identical | Rounded) -> Iterator[int | None]:
    """Yield numbers of orders in which their rows are ours, in each matrix of a stack; a new one is added.

    Tried are: as they stand (None), the orders of other tensors, the first rows, and what the rows themselves say.
    """
    (rows, columns), (held, width) = ours.shape[-2:], theirs.shape[-2:]
    if columns != width or rows > held:
        return
    pairs = [(ours, theirs)] if ours.ndim == 2 else list(zip(ours, theirs, strict=True))

    def fits(order: np.ndarray | None) -> bool:
        return all(like.same(mine, other, order) for mine, other in pairs)

    if rows == held and fits(None):
        yield None
    for number, order in enumerate(list(orders)):
        if len(order) == rows and order.max() < held and fits(order):
            yield number
    for order in (np.arange(rows), like.order(*pairs[0])) if rows < held else (like.order(*pairs[0]),):
        if order is not None and fits(order):
            orders.append(order)
            yield len(orders) - 1


def _unit(rows: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(rows.float(), dim=1)
