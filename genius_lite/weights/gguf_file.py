"""Reading and writing GGUF files: header first, checked against the file's size, tensors in blocks of rows.

Values are kept as bytes, so that what is written has the metadata, tokenizer and chat template of what was read, byte
for byte. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. A model in several files (llama-gguf-split) is read
as one.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize

from genius_lite.errors import LFS_POINTER, LFS_TOLD, UserError
from genius_lite.progress import Advance
from genius_lite.weights.gguf_header import ARRAY, INT32, UINT32, Reader, Tensor, broken, shown, tensor_bytes

EMBEDDINGS = "token_embd.weight"
_MAGIC = b"GGUF"
_LARGEST_ALIGNMENT = 1 << 16  # bytes
_ARCHITECTURE = re.compile(r"[\w.-]{1,64}", re.ASCII)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def sha256(files: Iterable[Path]) -> str:
    """Return the SHA-256 of files one after the other, hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@dataclass(frozen=True)
class GGUF:
    """A model's header. `metadata` holds scalars and strings, None for arrays; `values` has all as bytes, in order.

    `path` is what llama.cpp opens, `files` all that belong to it.
    """

    path: Path
    files: list[Path]
    metadata: dict[str, Any]
    tensors: list[Tensor]
    values: dict[str, bytes]  # behind the number of their type, uint32

    @property
    def architecture(self) -> str:
        """Empty for a file that is no model, such as an importance matrix."""
        return self.metadata.get("general.architecture", "")

    @property
    def alignment(self) -> int:
        """Of the tensors in the file, bytes."""
        return self.metadata.get("general.alignment", 32)

    @cached_property
    def sha256(self) -> str:
        """Of its files, which are read when it is first asked for: gigabytes."""
        return sha256(self.files)

    @cached_property
    def by_name(self) -> dict[str, Tensor]:
        """The tensors by their names, of which none is there twice."""
        return {t.name: t for t in self.tensors}

    def kind(self, key: str) -> int:
        """Return the type number of a key's value."""
        return struct.unpack_from("<I", self.values[key])[0]

    def array(self, key: str) -> tuple[int, int] | None:
        """Return the type number and count of an array's values; None where there is no array under this key."""
        if key not in self.values or self.kind(key) != ARRAY:
            return None
        return struct.unpack_from("<IQ", self.values[key], 4)

    def count(self, key: str) -> int | None:
        """Return a count; of an array of counts, as of each layer's heads, the largest."""
        if (array := self.array(key)) is None:
            return self.metadata.get(key)
        kind, length = array
        layout = f"<{length}{'i' if kind == INT32 else 'I'}"
        numbers = struct.unpack_from(layout, self.values[key], 16) if kind in (INT32, UINT32) else ()
        return max(numbers, default=None)

    def own(self, name: str, default: int = 0) -> int:
        """Return a count under the architecture's name, as of its layers; the default where there is none."""
        found = self.count(f"{self.architecture}.{name}")
        return default if found is None else found

    @property
    def vocabulary(self) -> int:
        """Of a language model, its tokens: llama.cpp has as many as embeddings."""
        return self.by_name[EMBEDDINGS].shape[0]

    @property
    def parameters(self) -> int:
        return sum(t.rows * t.columns for t in self.tensors)

    def raw(self, tensor: Tensor, rows: slice | None = None) -> np.ndarray:
        """Read a tensor's bytes, or those of some of its rows (uint8, flat)."""
        rows = rows or slice(0, tensor.rows)
        size = tensor_bytes((tensor.columns,), tensor.type)
        count = (rows.stop - rows.start) * size
        return np.fromfile(tensor.path, np.uint8, count, offset=tensor.offset + rows.start * size)

    def raw_blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """Read all its bytes, in pieces that are small in memory (uint8)."""
        return (self.raw(tensor, rows) for rows in tensor.blocks())

    def dequantized(self, tensor: Tensor, rows: slice | None = None) -> np.ndarray:
        """Read a tensor as float32 in its shape, or some of its rows (rows, columns)."""
        weights = dequantize(self.raw(tensor, rows), tensor.type)
        return weights.reshape((-1, tensor.columns) if rows else tensor.shape)

    def keeping(self, wanted: Callable[[str], bool]) -> GGUF:
        """Return the same header with only some of the metadata's keys."""
        kept = {key: value for key, value in self.values.items() if wanted(key)}
        return replace(self, metadata={key: self.metadata[key] for key in kept}, values=kept)


def read(path: Path) -> GGUF:
    """Read and check the header of a model, or those of all its shards; no tensor data is touched.

    Raises:
        UserError: not a GGUF, cut short, or inconsistent; or a shard is missing.
    """
    first = _read_file(path)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or count < 1:
        raise broken(path, f"split.count is {count!r}")
    whole = first if count == 1 else _joined(first, count)  # of shards only the first says what the model is
    name = whole.metadata.get("general.architecture")
    is_imatrix = name is None and whole.metadata.get("general.type") == "imatrix"
    if not is_imatrix and not (isinstance(name, str) and _ARCHITECTURE.fullmatch(name)):
        raise broken(whole.path, f"its architecture is {shown(str(name))}" if name else "it names no architecture")
    return whole


def _joined(first: GGUF, count: int) -> GGUF:
    """Read all files of the model that `first` is one of."""
    path, names = first.path, shard_names(first.path.name)
    if len(names) != count:
        raise UserError(f"{path}: one of {count} files, whose names must end in -00001-of-{count:05}.gguf and so on")
    if missing := next((name for name in names if not (path.parent / name).is_file()), None):
        raise UserError(f"{path}: one of {count} files; {missing} is not beside it")
    shards = [first if name == path.name else _read_file(path.parent / name) for name in names]
    for number, shard in enumerate(shards):
        if (shard.metadata.get("split.no"), shard.metadata.get("split.count")) != (number, count):
            raise broken(shard.path, f"it does not say that it is file {number + 1} of {count}")
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    expected = shards[0].metadata.get("split.tensors.count")
    if len({t.name for t in tensors}) != len(tensors) or expected not in (None, len(tensors)):
        raise UserError(f"{path}: the {count} files hold {len(tensors)} tensors, not the {expected} of one model")
    header = shards[0].keeping(lambda key: not key.startswith("split."))
    return replace(header, files=[shard.path for shard in shards], tensors=tensors)


def shard_names(name: str) -> list[str]:
    """Return the names of all files of the model that `name` is a file of; `name` alone if it is no shard."""
    found = _SHARD.fullmatch(name)
    if not found:
        return [name]
    return [f"{found[1]}-{number:05}-of-{found[3]}.gguf" for number in range(1, int(found[3]) + 1)]


def _read_file(path: Path) -> GGUF:
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = Reader(file, size, path)
        if (magic := reader.take(4)) != _MAGIC:
            is_pointer = (magic + file.read(len(LFS_POINTER))).startswith(LFS_POINTER)
            raise UserError(f"{path}: {LFS_TOLD if is_pointer else 'not a GGUF file'}")
        (version,) = reader.unpack("<I")
        if version not in (2, 3):
            raise UserError(f"{path}: GGUF version {version} is not supported (2 and 3 are)")
        tensor_count, kv_count = reader.counts()
        metadata, values = {}, {}
        for _ in range(kv_count):
            key = reader.key()
            if key in values:
                raise reader.broken(f"{shown(key)} is there twice")
            start = reader.at
            metadata[key] = reader.value(*reader.unpack("<I"))
            end = reader.at
            file.seek(start)
            values[key] = file.read(end - start)
        infos = [reader.tensor() for _ in range(tensor_count)]
        after = reader.at
    header = GGUF(path, [path], metadata, [], values)
    alignment, key = header.alignment, "general.alignment"
    if key in values and (header.kind(key) != UINT32 or alignment.bit_count() != 1 or alignment > _LARGEST_ALIGNMENT):
        raise reader.broken(f"alignment {alignment!r}")
    data = _aligned(after, alignment)
    tensors = [replace(t, offset=t.offset + data) for t in infos]
    _check_places(reader, tensors, alignment)
    return replace(header, tensors=tensors)


def _check_places(reader: Reader, tensors: list[Tensor], alignment: int) -> None:
    """Refuse tensors of one name, outside the file, not aligned, or over each other."""
    if twice := next((name for name, count in Counter(t.name for t in tensors).items() if count > 1), None):
        raise reader.broken(f"the tensor {shown(twice)} is there twice")
    end, last = 0, ""
    for t in sorted(tensors, key=lambda t: t.offset):
        if t.offset + t.nbytes > reader.size:
            where = f"{shown(t.name)} ends at byte {t.offset + t.nbytes}, the file at {reader.size}"
            raise UserError(f"{reader.path}: cut short: {where}; copy or download it again")
        if t.offset % alignment:
            raise reader.broken(f"{shown(t.name)} begins at byte {t.offset}, no multiple of {alignment}")
        if t.offset < end:
            raise reader.broken(f"{shown(t.name)} begins inside {shown(last)}")
        end, last = t.offset + t.nbytes, t.name


def write(
    path: Path,
    source: GGUF,
    tensors: Sequence[Tensor],
    data: Callable[[Tensor], Iterable[np.ndarray]],
    replaced: dict[str, int],
    advance: Advance = lambda n: None,
) -> None:
    """Write a GGUF with the metadata of `source` and other tensors, one block of a tensor in memory at a time.

    Args:
        tensors: names, shapes and types; their offsets are assigned here.
        data: the bytes of a tensor in pieces (uint8 or its own dtype, C order).
        replaced: uint32 metadata that changes or, where absent, is added, such as `general.file_type`.
        advance: called with the bytes of each piece.
    """
    values = source.values | {key: struct.pack("<II", UINT32, value) for key, value in replaced.items()}
    header = bytearray(_MAGIC + struct.pack("<IQQ", 3, len(tensors), len(values)))
    for key, value in values.items():
        header += _text(key) + value
    offset = 0
    for t in tensors:
        header += _text(t.name) + struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *reversed(t.shape), t.type, offset)
        offset = _aligned(offset + t.nbytes, source.alignment)
    with path.open("wb") as file:
        file.write(header.ljust(_aligned(len(header), source.alignment), b"\0"))
        for t in tensors:
            given = 0
            for block in data(t):
                given += file.write(np.ascontiguousarray(block).data)
                advance(block.nbytes)
            if given != t.nbytes:
                raise ValueError(f"{t.name}: {given} bytes given, {t.nbytes} expected")
            file.write(bytes(_aligned(given, source.alignment) - given))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
