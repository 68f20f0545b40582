"""Weights of a GGUF tensor as integers on a grid: what a quantized type can hold, and which of it is held.

llama.cpp's block types write a weight as scale * code + offset (`offset` is negative or zero), with a scale for each
group of columns; IQ4 types take the code's place in a table instead of the code, and 16-bit floats are a grid too,
whose steps grow with the weight. Layouts: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import IQ4_NL, Q4_K

LARGEST_F16 = np.float32(65504)


class Grid(ABC):
    """Some rows of a tensor: which values each weight may take, with the integer `codes` (rows, columns) that it has.

    Codes next to each other are neighbours on the grid; whether they rise or fall with the weight is `rising` (+1, -1
    or 0 where all codes are one value, broadcast to rows and columns).
    """

    codes: np.ndarray
    lowest: int
    highest: int
    rising: np.ndarray

    @cached_property
    def held(self) -> np.ndarray:
        """The weights that the codes of the base stand for."""
        return self.values(self.codes)

    @abstractmethod
    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return the weights that codes stand for, float32 (rows, columns)."""

    @abstractmethod
    def nearest(self, weights: np.ndarray) -> np.ndarray:
        """Find the codes of the values that are nearest to some weights; those out of range get the last one."""

    @abstractmethod
    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Encode the tensor's bytes (uint8, flat) with these codes and the same scales."""


class _Floats(Grid):
    """16-bit floats. Codes are their bit patterns, counted from zero in both directions."""

    def __init__(self, raw: np.ndarray, columns: int, kind: T):
        self.brain = kind == T.BF16
        bits = raw.view(np.uint16).reshape(-1, columns)
        magnitude = (bits & 0x7FFF).astype(np.int32)
        self.codes = np.where(bits >> 15, -magnitude, magnitude)
        self.highest = 0x7F7F if self.brain else 0x7BFF  # the largest finite one
        self.lowest = -self.highest
        self.rising = np.ones((1, 1), np.int32)

    def values(self, codes: np.ndarray) -> np.ndarray:
        bits = self._bits(codes)
        return (bits.astype(np.uint32) << 16).view(np.float32) if self.brain else bits.view(np.float16).astype("f4")

    def nearest(self, weights: np.ndarray) -> np.ndarray:
        if self.brain:
            bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
            found = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.int32)  # to the even one of two
        else:
            half = np.clip(weights, -LARGEST_F16, LARGEST_F16).astype(np.float16)
            found = half.view(np.uint16).astype(np.int32)
        magnitude = found & 0x7FFF
        return np.clip(np.where(found & 0x8000, -magnitude, magnitude), self.lowest, self.highest)

    def encode(self, codes: np.ndarray) -> np.ndarray:
        return self._bits(codes).view(np.uint8).reshape(-1)

    def _bits(self, codes: np.ndarray) -> np.ndarray:
        return (np.abs(codes) | ((codes < 0) << 15)).astype(np.uint16)


class _Blocks(Grid):
    """A block type. `scale` and `offset` are (rows, groups, 1); groups have the same number of columns."""

    def __init__(self, raw: np.ndarray, columns: int, kind: T):
        layout = self.layout = _LAYOUTS[kind]
        weights, size = GGML_QUANT_SIZES[kind]
        blocks = self.blocks = raw.reshape(-1, size)
        rows = len(blocks) * weights // columns
        scale, offset = layout.scales(blocks)
        self.scale = scale.reshape(rows, -1, 1)
        self.offset = None if offset is None else offset.reshape(rows, -1, 1)
        self.codes = (layout.unpack(blocks).astype(np.int16) - layout.zero).reshape(rows, columns)
        self.lowest, self.highest = -layout.zero, layout.count - 1 - layout.zero
        self.grouped = (rows, self.scale.shape[1], -1)
        self.rising = np.repeat(np.sign(self.scale[..., 0]).astype(np.int16), columns // self.scale.shape[1], axis=1)

    def values(self, codes: np.ndarray) -> np.ndarray:
        numbers = codes.reshape(self.grouped)
        numbers = numbers.astype(np.float32) if self.layout.table is None else self.layout.table[numbers]
        numbers *= self.scale
        if self.offset is not None:
            numbers += self.offset
        return numbers.reshape(codes.shape)

    def nearest(self, weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore"):
            # Where the scale is zero, or so small that its inverse is infinite, all codes are nearly one value.
            inverse = np.where(np.isfinite(1 / self.scale), 1 / self.scale, 0)
        numbers = weights.reshape(self.grouped)
        numbers = (numbers if self.offset is None else numbers - self.offset) * inverse
        if self.layout.table is not None:
            between = (self.layout.table[1:] + self.layout.table[:-1]) / 2
            return np.searchsorted(between, numbers).astype(np.int16).reshape(weights.shape)
        np.rint(numbers, out=numbers)
        np.clip(numbers, self.lowest, self.highest, out=numbers)
        return numbers.astype(np.int16).reshape(weights.shape)

    def encode(self, codes: np.ndarray) -> np.ndarray:
        made = self.blocks.copy()
        plain = (codes + np.int16(self.layout.zero)).astype(np.uint8)
        self.layout.pack(plain.reshape(len(made), -1), made)
        return made.reshape(-1)


_Scales = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class _Layout:
    """How a block type keeps its codes: unpacked they are 0 to `count` - 1, and `zero` is the one that means 0.

    `planes` have the lowest bits of all codes, then those above: the plane's first byte in a block and the byte behind
    its last, bits of each code, and bytes of a run, which has first the codes in the lowest bits of its bytes.
    """

    scales: Callable[[np.ndarray], _Scales]  # blocks (N, bytes) -> (N, groups), float32; offsets likewise
    planes: tuple[tuple[int, int, int, int], ...]
    zero: int = 0
    table: np.ndarray | None = None
    flipped: int = 0  # bits of a code that are stored the other way round

    @property
    def count(self) -> int:
        return 1 << sum(bits for _, _, bits, _ in self.planes)

    def unpack(self, blocks: np.ndarray) -> np.ndarray:
        """Read the codes of blocks (N, bytes): (N, weights), uint8."""
        (start, stop, below, run), *above = self.planes
        codes = _plane(blocks[:, start:stop], below, run)
        for start, stop, bits, run in above:
            codes = codes | (_plane(blocks[:, start:stop], bits, run) << np.uint8(below))
            below += bits
        return codes ^ np.uint8(self.flipped) if self.flipped else codes

    def pack(self, codes: np.ndarray, blocks: np.ndarray) -> None:
        """Write codes into blocks."""
        codes, below = codes ^ np.uint8(self.flipped), 0
        for start, stop, bits, run in self.planes:
            plane = (codes >> np.uint8(below)) & np.uint8((1 << bits) - 1)
            runs = plane.reshape(len(blocks), -1, 8 // bits, run) << _shifts(bits)
            blocks[:, start:stop] = np.bitwise_or.reduce(runs, axis=2).reshape(len(blocks), -1)
            below += bits


def has_grid(kind: T) -> bool:
    """Say whether this type's weights lie on a grid that is known here. (IQ1 to IQ3 share codes among weights.)"""
    return kind in (T.F16, T.BF16) or kind in _LAYOUTS


def grid(kind: T, raw: np.ndarray, columns: int) -> Grid:
    """Read some whole rows of a tensor, given as their bytes (uint8); a KeyError where the type has no known grid."""
    return _Floats(raw, columns, kind) if kind in (T.F16, T.BF16) else _Blocks(raw, columns, kind)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Read a 16-bit float of every block, float32 (N, 1)."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits, dtype=np.uint8)[:, None]


def _plane(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Read numbers of so many bits: of each `run` bytes first the lowest bits, then those above."""
    runs = packed.reshape(len(packed), -1, 1, run) >> _shifts(bits)
    return (runs & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _one_scale(blocks: np.ndarray) -> _Scales:
    return _half(blocks, 0), None


def _scale_and_minimum(blocks: np.ndarray) -> _Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _q2_k(blocks: np.ndarray) -> _Scales:
    both = blocks[:, :16]
    return _half(blocks, 80) * (both & 15), -(_half(blocks, 82) * (both >> 4))


def _q3_k(blocks: np.ndarray) -> _Scales:
    scale = _plane(blocks[:, 96:104], 4, 8) | (_plane(blocks[:, 104:108], 2, 4) << 4)
    return _half(blocks, 108) * (scale.astype(np.int8) - np.int8(32)), None


def _q45_k(blocks: np.ndarray) -> _Scales:
    scale, minimum = Q4_K.get_scale_min(blocks[:, 4:16].copy())
    return _half(blocks, 0) * scale, -(_half(blocks, 2) * minimum)


def _q6_k(blocks: np.ndarray) -> _Scales:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None


def _iq4_xs(blocks: np.ndarray) -> _Scales:
    high = blocks[:, 2:4].copy().view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16)
    scale = _plane(blocks[:, 4:8], 4, 1) | ((high & 3) << 4)
    return _half(blocks, 0) * (scale.astype(np.float32) - 32), None


_IQ4 = np.array(IQ4_NL.kvalues, dtype=np.float32)
_LAYOUTS = {
    T.Q4_0: _Layout(_one_scale, ((2, 18, 4, 16),), zero=8),
    T.Q4_1: _Layout(_scale_and_minimum, ((4, 20, 4, 16),)),
    T.Q5_0: _Layout(_one_scale, ((6, 22, 4, 16), (2, 6, 1, 1)), zero=16),
    T.Q5_1: _Layout(_scale_and_minimum, ((8, 24, 4, 16), (4, 8, 1, 1))),
    T.Q8_0: _Layout(_one_scale, ((2, 34, 8, 32),), zero=128, flipped=128),  # signed
    T.IQ4_NL: _Layout(_one_scale, ((2, 18, 4, 16),), table=_IQ4),
    T.IQ4_XS: _Layout(_iq4_xs, ((8, 136, 4, 16),), table=_IQ4),
    T.Q2_K: _Layout(_q2_k, ((16, 80, 2, 32),)),
    T.Q3_K: _Layout(_q3_k, ((32, 96, 2, 32), (0, 32, 1, 32)), zero=4),
    T.Q4_K: _Layout(_q45_k, ((16, 144, 4, 32),)),
    T.Q5_K: _Layout(_q45_k, ((48, 176, 4, 32), (16, 48, 1, 32))),
    T.Q6_K: _Layout(_q6_k, ((0, 128, 4, 64), (128, 192, 2, 32)), zero=32),
}
