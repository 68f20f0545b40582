"""Merge a LoRA adapter onto the base model, straight into a GGUF of any type, so that the file keeps what was learned.

One pass: a few blocks of rows are dequantized, the adapter's update is added in float32, and the sum is rounded to the
type of the file (`rounding.py`) and written. No 16-bit file stands in between.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T

from genius_lite.hardware.system import cores
from genius_lite.progress import Advance
from genius_lite.recipe import TargetType
from genius_lite.records import seed_of
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter, Matrix
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor
from genius_lite.weights.grid import LARGEST_F16, grid
from genius_lite.weights.importing import Base
from genius_lite.weights.quantize import Types, adaptable, file_metadata, quantize_rows, types_of
from genius_lite.weights.rounding import kept_of, round_keeping

THREADS = 8  # that work at once; each has some 30 MB in memory
_TOLD = 0.25  # an error of a share from which nothing can be told: fewer than some sixteen weights moved

_Block = tuple[np.ndarray, np.ndarray | None]  # bytes of some rows, and what `kept_of` says of an adapted tensor's


@dataclass(frozen=True)
class Kept:
    """What a file keeps of an update D: of every adapted matrix what `rounding.kept_of` says."""

    products: dict[str, tuple[float, ...]]

    @property
    def share(self) -> float | None:
        """Of the whole update; None where there is none."""
        kept, learned, _ = self._whole
        return kept / learned if learned else None

    @property
    def error(self) -> float:
        """Of the share, as weights move by chance; infinite where none moved."""
        _, learned, variance = self._whole
        return variance**0.5 / learned if variance else math.inf

    @property
    def by_matrix(self) -> dict[str, float]:
        """Of each matrix that the adapter changes."""
        return {name: kept / learned for name, (kept, learned, _) in self.products.items() if learned}

    @property
    def _whole(self) -> tuple[float, ...]:
        return tuple(map(sum, zip(*self.products.values(), strict=True))) or (0.0, 0.0, 0.0)

    def loses(self, keep: float) -> bool:
        """Say whether the file surely keeps less than the share `keep`; nobody can where hardly a weight moved."""
        return self.share is not None and self.error < _TOLD and self.share + 2 * self.error < keep


@dataclass(frozen=True)
class Rounded:
    """The base in other types, as `round_base` wrote it, and the importance that it was quantized by.

    That is the first round's; offsets are even among columns that were as important then (`rounding.py`). Spread by a
    later round's importance, Q4_K keeps 0.99 to 0.94 of an update, the less the further the two are apart.
    """

    gguf: GGUF
    importance: Matrix


class _TooLargeError(ValueError):
    """A merged weight is no finite 16-bit number; says in which tensor."""


def merge(
    base: Base,
    adapter: Adapter | None,
    kind: TargetType,
    out: Path,
    advance: Advance = lambda n: None,
    *,
    like: GGUF | None = None,
    rounded: Rounded | None = None,
) -> Kept:
    """Write base + adapter as a GGUF of type `kind`, with the base's metadata; only what tells the type changes.

    Tensors that the adapter does not touch are copied byte for byte where their type stays. A tensor that F16 cannot
    hold becomes F32.

    Args:
        adapter: None writes the base alone.
        like: the file whose types `source` means; the base's own if not given. Where it says no `general.file_type`,
            none is written, and llama.cpp guesses it of the tensors.
        rounded: the base in these types, if `round_base` wrote it; else it is quantized on the way.
        advance: called with bytes as they are written, `types_bytes` in all (about).

    Raises:
        UserError: the base's file is another one by now.
    """
    base.check()
    types = planned_types(base, adapter, kind, like)
    return write(base.gguf, adapter, types, file_metadata(like or base.gguf, kind, types), out, advance, rounded)


def round_base(
    base: Base,
    adapter: Adapter,
    kind: TargetType,
    out: Path,
    advance: Advance = lambda n: None,
    like: GGUF | None = None,
) -> None:
    """Write the base alone, in the types and with the importance that `merge`, which see, rounds it with."""
    base.check()
    types = planned_types(base, adapter, kind, like)
    unlearned = replace(adapter, factors={})
    write(base.gguf, unlearned, types, file_metadata(like or base.gguf, kind, types), out, advance)


def requantize(source: GGUF, kind: TargetType, out: Path) -> None:
    """Write a model as a GGUF of another type, without an importance matrix; to measure what such a file is like."""
    types = types_of(source, kind)
    write(source, None, types, file_metadata(source, kind, types), out)


def planned_types(base: Base, adapter: Adapter | None, kind: TargetType, like: GGUF | None = None) -> Types:
    """Choose the type of each tensor in a file of type `kind`; arguments as of `merge`."""
    return adaptable(types_of(like or base.gguf, kind), base.gguf, set(adapter.factors) if adapter else set())


def write(
    source: GGUF,
    adapter: Adapter | None,
    types: Types,
    metadata: dict[str, int],
    out: Path,
    advance: Advance = lambda n: None,
    rounded: Rounded | None = None,
) -> Kept:
    """Write source + adapter in these types, but in F32 what F16 cannot hold; see `merge`, which knows the base.

    Args:
        metadata: uint32 values that replace the source's; without `general.file_type` the file has none.
    """
    own = source.by_name
    products: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))

    def ready(target: Tensor) -> Rounded | None:
        """Return the base in the target's type, if it is there."""
        return rounded if rounded and rounded.gguf.by_name[target.name].type == target.type else None

    def raw(target: Tensor, rows: slice, weights: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the base's bytes in the target's type."""
        if own[target.name].type == target.type:
            return source.raw(own[target.name], rows)
        if made := ready(target):
            return made.gguf.raw(made.gguf.by_name[target.name], rows)
        return quantize_rows(weights(), target.type, adapter.importance.get(target.name) if adapter else None)

    def block(target: Tensor, rows: slice) -> _Block:
        if adapter is None or target.name not in adapter.factors:

            def fitting() -> np.ndarray:
                found = source.dequantized(own[target.name], rows)
                if target.type == T.F16 and np.abs(found).max() > LARGEST_F16:
                    raise _TooLargeError(target.name)
                return found

            return raw(target, rows, fitting), None
        weights, update = source.dequantized(own[target.name], rows), adapter.update(target.name, rows)
        if target.type == T.F32:
            return (merged := weights + update), kept_of(merged - weights, update)
        if target.type == T.F16 and np.abs(weights + update).max() > LARGEST_F16:
            raise _TooLargeError(target.name)
        on = grid(target.type, raw(target, rows, lambda: weights), target.columns)
        rng = np.random.default_rng(seed_of("round", target.name, rows.start))
        by = (ready(target) or adapter).importance
        matters = by.get(target.name) if GGML_QUANT_SIZES[target.type][0] > 1 else None
        codes = round_keeping(on, weights, update, rng, matters)
        return on.encode(codes), kept_of(on.values(codes) - on.held, update)

    with ThreadPoolExecutor(threads := min(cores(), THREADS)) as pool:

        def data(ahead: Iterator[_Block], target: Tensor) -> Iterator[np.ndarray]:
            for made, kept in islice(ahead, len([*target.blocks()])):
                if kept is not None:
                    products[target.name] += kept
                yield made

        while True:
            products.clear()
            targets = [replace(t, type=types[t.name]) for t in source.tensors]
            # Through all tensors, in the order in which they are written: a small model's are of a block each.
            ahead = _ahead(threads, (pool.submit(block, t, rows) for t in targets for rows in t.blocks()))
            try:
                gguf_file.write(out, _header(source, metadata), targets, partial(data, ahead), metadata, advance)
                return Kept({name: tuple(found.tolist()) for name, found in products.items()})
            except _TooLargeError as e:
                types = {**types, str(e): T.F32}


def _header(source: GGUF, metadata: dict[str, int]) -> GGUF:
    """Leave out a type that is not the file's, and where somebody had an importance matrix: a path may hold a name."""
    places = ("quantize.imatrix.file", "quantize.imatrix.dataset")
    left_out = {key for key in places if {"/", "\\"} & {*str(source.metadata.get(key, ""))}}
    return source.keeping(lambda key: key not in left_out | ({"general.file_type"} - metadata.keys()))


def _ahead(count: int, blocks: Iterator[Future[_Block]]) -> Iterator[_Block]:
    """Yield what is made of each block, in order, with at most `count` of them made or under way and not yet taken."""
    under_way = deque(islice(blocks, count))  # a block is asked for when it is drawn from `blocks`
    while under_way:
        made = under_way.popleft().result()
        under_way.extend(islice(blocks, 1))
        yield made
