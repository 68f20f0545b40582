"""The parts of a GGUF header, read within bounds: nothing is allocated that the file could not hold."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from genius_lite.errors import UserError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS, _MAX_NESTING = 4, 4
_BLOCK = 1 << 23  # weights that are in memory at once: 32 MB in float32


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it. `shape` is numpy's: rows first (GGUF stores the reverse)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int  # bytes from the start of its file
    path: Path

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows of all its matrices together."""
        return math.prod(self.shape[:-1])

    def blocks(self) -> Iterator[slice]:
        """Its rows, in pieces that are small in memory."""
        size = max(1, _BLOCK // max(1, self.columns))
        return (slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size))


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor of this shape and type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


@dataclass(frozen=True)
class Reader:
    """Reads what the format names, from a file of `size` bytes.

    Every method raises UserError where the file is too short or says what cannot be.
    """

    file: BinaryIO
    size: int
    path: Path

    @property
    def at(self) -> int:
        return self.file.tell()

    def take(self, n: int) -> bytes:
        if n > self.size - self.file.tell():
            raise UserError(f"{self.path}: cut short or broken: the header asks for bytes that are not there")
        return self.file.read(n)

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8", errors="surrogateescape")

    def value(self, kind: int, nesting: int = 0) -> Any:
        """A scalar or string; arrays are passed over and give None."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind != _ARRAY or nesting >= _MAX_NESTING:
            raise UserError(f"{self.path}: broken GGUF: metadata type {kind}")
        inner, count = self.unpack("<IQ")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[inner]))
        else:
            for _ in range(count):
                self.skip(self.unpack("<Q")[0]) if inner == _STRING else self.value(inner, nesting + 1)
        return None

    def skip(self, n: int) -> None:
        if n > self.size - self.file.tell():
            raise UserError(f"{self.path}: cut short or broken: the header asks for bytes that are not there")
        self.file.seek(n, 1)

    def tensor(self) -> Tensor:
        name = self.string()
        (dims,) = self.unpack("<I")
        if not 1 <= dims <= _MAX_DIMS:
            raise UserError(f"{self.path}: broken GGUF: {name!r} has {dims} dimensions")
        shape = tuple(reversed(self.unpack(f"<{dims}Q")))
        kind, offset = self.unpack("<IQ")
        if kind not in set(GGMLQuantizationType):
            raise UserError(f"{self.path}: {name!r} has the unknown tensor type {kind}")
        if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType(kind)][0]:
            raise UserError(f"{self.path}: broken GGUF: rows of {name!r} are no whole blocks")
        return Tensor(name, shape, GGMLQuantizationType(kind), offset, self.path)
