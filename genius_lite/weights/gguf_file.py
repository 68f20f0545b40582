"""Reading and writing GGUF files: header first, checked against the file's size, tensors one at a time.

The key-value section is kept as bytes, so that what is written has the metadata, tokenizer and chat template
of what was read, byte for byte. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from genius_lite.errors import UserError

_MAGIC = b"GGUF"
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
_U32, _STRING, _ARRAY = 4, 8, 9
_MAX_DIMS, _MAX_NESTING = 4, 4


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it. `shape` is numpy's: rows first (GGUF stores the reverse)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int  # bytes from the start of the file

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


@dataclass(frozen=True)
class GGUF:
    """A GGUF file's header. `metadata` holds scalars and strings; arrays are left in `kv` as bytes."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[Tensor]
    kv: bytes
    kv_count: int
    value_at: dict[str, int]  # where a key's value begins in `kv`
    alignment: int

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    @property
    def parameters(self) -> int:
        return sum(math.prod(t.shape) for t in self.tensors)

    def raw(self, tensor: Tensor) -> np.ndarray:
        """The tensor's bytes, mapped from the file (uint8)."""
        return np.memmap(self.path, np.uint8, "r", offset=tensor.offset, shape=(tensor.nbytes,))

    def dequantized(self, tensor: Tensor) -> np.ndarray:
        """The tensor as float32, in its shape."""
        return dequantize(self.raw(tensor), tensor.type).reshape(tensor.shape)

    def kv_with(self, replaced: dict[str, int]) -> tuple[bytes, int]:
        """The key-value section with these uint32 values replaced or, where absent, added; and its count."""
        kv, count = bytearray(self.kv), self.kv_count
        for key, value in replaced.items():
            if key in self.value_at:
                struct.pack_into("<I", kv, self.value_at[key], value)
            else:
                kv += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", _U32, value)
                count += 1
        return bytes(kv), count


def read(path: Path) -> GGUF:
    """Read and check a header; no tensor data is touched.

    Raises:
        UserError: not a GGUF, cut short, or inconsistent.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size, path)
        if reader.take(4) != _MAGIC:
            raise UserError(f"{path}: not a GGUF file")
        version, tensor_count, kv_count = reader.unpack("<IQQ")
        if version not in (2, 3):
            raise UserError(f"{path}: GGUF version {version} is not supported (2 and 3 are)")
        start, metadata, value_at = reader.at, {}, {}
        for _ in range(kv_count):
            key = reader.string()
            (kind,) = reader.unpack("<I")
            value_at[key] = reader.at - start
            metadata[key] = reader.value(kind)
        end = reader.at
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise UserError(f"{path}: broken GGUF: alignment {alignment!r}")
        infos = [reader.tensor() for _ in range(tensor_count)]
        data = _aligned(reader.at, alignment)
        file.seek(start)
        kv = file.read(end - start)
    tensors = [Tensor(t.name, t.shape, t.type, t.offset + data) for t in infos]
    for t in tensors:
        if t.offset + t.nbytes > size:
            raise UserError(f"{path}: cut short: {t.name} ends at byte {t.offset + t.nbytes}, the file at {size}")
    if "general.architecture" not in metadata:
        raise UserError(f"{path}: broken GGUF: it names no architecture")
    return GGUF(path, metadata, tensors, kv, kv_count, value_at, alignment)


def write(
    path: Path,
    source: GGUF,
    tensors: Iterable[Tensor],
    data: Callable[[Tensor], np.ndarray],
    replaced: dict[str, int],
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Write a GGUF with the metadata of `source` and other tensors, one tensor in memory at a time.

    Args:
        tensors: names, shapes and types; their offsets are assigned here.
        data: the bytes of a tensor (uint8 or its own dtype, C order).
        replaced: uint32 metadata that changes, such as `general.file_type`.
        advance: called with the bytes written of each tensor.
    """
    tensors = list(tensors)
    kv, kv_count = source.kv_with(replaced)
    header = bytearray(_MAGIC + struct.pack("<IQQ", 3, len(tensors), kv_count) + kv)
    offset = 0
    for t in tensors:
        header += struct.pack("<Q", len(t.name.encode())) + t.name.encode()
        header += struct.pack("<I", len(t.shape)) + struct.pack(f"<{len(t.shape)}Q", *reversed(t.shape))
        header += struct.pack("<IQ", t.type, offset)
        offset = _aligned(offset + t.nbytes, source.alignment)
    with path.open("wb") as file:
        file.write(header)
        for t in tensors:
            file.write(bytes(_aligned(file.tell(), source.alignment) - file.tell()))
            block = np.ascontiguousarray(data(t))
            if block.nbytes != t.nbytes:
                raise ValueError(f"{t.name}: {block.nbytes} bytes given, {t.nbytes} expected")
            file.write(block.data)
            advance(t.nbytes)
        file.write(bytes(_aligned(file.tell(), source.alignment) - file.tell()))


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor of this shape and type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class _Reader:
    """Bounded reads: nothing is allocated that the file could not hold."""

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
        return Tensor(name, shape, GGMLQuantizationType(kind), offset)
