"""The parts of a GGUF header, read within bounds: nothing is allocated that the file could not hold."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from genius_lite.errors import UserError
from genius_lite.text import brief

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9
"""Type numbers of GGUF's values."""

_MAX_DIMS, _LONGEST_AXIS = 4, (1 << 63) - 1
# No real file comes near these. A text takes Python up to four times its bytes, a tensor a thousand.
_LARGEST = 1 << 26  # bytes of a header
_LONGEST_KEY, _LONGEST_NAME, _LONGEST_TEXT = 65_535, 255, 1 << 25  # bytes
_MOST = 1 << 16  # keys; tensors
_BLOCK_NAME = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,9})\.")
BLOCK = 1 << 19  # weights that are in memory at once: 2 MB in float32, which stay in the cache


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
        """Split its rows into pieces that are small in memory."""
        size = max(1, BLOCK // max(1, self.columns))
        return (slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size))


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Return the size of a tensor of this shape and type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def block_of(name: str) -> int | None:
    """Return the number of the block that a tensor of this name belongs to; None if to none."""
    found = _BLOCK_NAME.match(name)
    return int(found[1]) if found else None


def shown(text: str) -> str:
    """Quote a key or name in a message."""
    return f"`{brief(text)}`"


def broken(path: Path, what: str) -> UserError:
    """Return the error for a file that contradicts itself."""
    return UserError(f"{path}: broken GGUF: {what}")


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

    def broken(self, what: str) -> UserError:
        return broken(self.path, what)

    def take(self, n: int) -> bytes:
        self._need(n)
        return self.file.read(n)

    def skip(self, n: int) -> None:
        self._need(n)
        self.file.seek(n, 1)

    def _need(self, n: int) -> None:
        at = self.file.tell()
        if n > self.size - at:
            raise UserError(f"{self.path}: cut short or broken: the header asks for bytes that are not there")
        if at + n > _LARGEST:
            raise self.broken(f"a header of more than {_LARGEST >> 20} MB")

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def counts(self) -> tuple[int, int]:
        """Read how many tensors and how many keys the header announces."""
        tensors, keys = self.unpack("<QQ")
        if max(tensors, keys) > _MOST:
            raise self.broken(f"it announces {tensors} tensors and {keys} keys")
        return tensors, keys

    def string(self, longest: int = _LONGEST_TEXT) -> str:
        (length,) = self.unpack("<Q")
        if longest < length <= self.size - self.at:
            raise self.broken(f"a text of {length} bytes where at most {longest} are expected")
        return self.take(length).decode("utf-8", errors="surrogateescape")

    def key(self) -> str:
        key = self.string(_LONGEST_KEY)
        if not key or key.startswith("GGUF."):  # gguf's reader keeps the header's own fields under such names
            raise self.broken(f"a key that is {shown(key)}")
        return key

    def value(self, kind: int) -> Any:
        """Read a scalar or string; arrays are passed over and give None."""
        if kind == STRING:
            return self.string()
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind != ARRAY:
            raise self.broken(f"a value of the unknown type {kind}")
        items, count = self.unpack("<IQ")
        if items in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[items]))
        elif items == STRING:
            self._need(8 * count)  # before the loop
            for _ in range(count):
                self.skip(self.unpack("<Q")[0])
        else:  # llama.cpp knows no arrays of arrays either
            raise self.broken(f"an array of the unknown type {items}")
        return None

    def tensor(self) -> Tensor:
        """Read a tensor's description, with the offset as it stands there: from where all data begin."""
        name = self.string(_LONGEST_NAME)
        (dims,) = self.unpack("<I")
        if not 1 <= dims <= _MAX_DIMS:
            raise self.broken(f"{shown(name)} has {dims} dimensions")
        shape = tuple(reversed(self.unpack(f"<{dims}Q")))
        kind, offset = self.unpack("<IQ")
        if kind not in set(GGMLQuantizationType):
            raise UserError(f"{self.path}: {shown(name)} has the unknown tensor type {kind}")
        if max(shape) > _LONGEST_AXIS:
            raise self.broken(f"{shown(name)} is {list(shape)}")
        if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType(kind)][0]:
            raise self.broken(f"rows of {shown(name)} are no whole blocks")
        return Tensor(name, shape, GGMLQuantizationType(kind), offset, self.path)
