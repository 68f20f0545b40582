"""GGUF files as plain data that can be made to lie. Knows nothing of the reader under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


@dataclass
class Entry:
    """A key and its value; `value` is as it stands in the file."""

    key: bytes
    kind: int
    value: bytes


@dataclass
class Info:
    """A tensor: its description, and the bytes behind it. `dims` begin with the columns, as in the file."""

    name: bytes
    dims: list[int]
    type: int
    offset: int
    data: bytes


@dataclass
class Raw:
    """A file in parts; `tensor_count` and `kv_count` are announced, whatever there is."""

    version: int
    entries: list[Entry]
    tensors: list[Info]
    alignment: int = 32
    magic: bytes = b"GGUF"
    tensor_count: int | None = None
    kv_count: int | None = None

    def entry(self, key: str) -> Entry | None:
        return next((e for e in self.entries if e.key == key.encode()), None)

    def put(self, key: str, kind: int, value: bytes) -> None:
        """Set a value, or add it."""
        if found := self.entry(key):
            found.kind, found.value = kind, value
        else:
            self.entries.append(Entry(key.encode(), kind, value))

    def place(self) -> None:
        """Let the tensors follow each other as they should."""
        at = 0
        for tensor in self.tensors:
            tensor.offset = at
            at += -(-len(tensor.data) // self.alignment) * self.alignment

    def header(self) -> bytes:
        """All before the tensors' data."""
        counts = [len(self.tensors) if self.tensor_count is None else self.tensor_count]
        counts.append(len(self.entries) if self.kv_count is None else self.kv_count)
        out = bytearray(self.magic + struct.pack("<IQQ", self.version, *counts))
        for e in self.entries:
            out += length(e.key) + e.key + struct.pack("<I", e.kind) + e.value
        for t in self.tensors:
            out += length(t.name) + t.name + struct.pack("<I", len(t.dims))
            out += struct.pack(f"<{len(t.dims)}Q", *t.dims) + struct.pack("<IQ", t.type, t.offset)
        return bytes(out)

    def encode(self) -> bytes:
        """The file; a tensor whose offset is out of bounds stands at the end."""
        header = self.header()
        out = bytearray(header + bytes(-len(header) % self.alignment))
        start, end = len(out), len(out) + sum(len(t.data) + self.alignment for t in self.tensors)
        for t in self.tensors:
            at = start + t.offset if start + t.offset < end else len(out)
            out += bytes(max(0, at + len(t.data) - len(out)))
            out[at : at + len(t.data)] = t.data
        return bytes(out + bytes(-len(out) % self.alignment))


def length(text: bytes) -> bytes:
    return struct.pack("<Q", len(text))


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return length(raw) + raw


def number(kind: int, value: float) -> bytes:
    return struct.pack(f"<{FORMATS[kind]}", value)


def array(kind: int, values: list, count: int | None = None) -> bytes:
    """An array's value, which may announce another count than it has."""
    items = b"".join(text(v) if kind == STRING else number(kind, v) for v in values)
    return struct.pack("<IQ", kind, len(values) if count is None else count) + items


def strings(value: bytes) -> list[bytes]:
    """The items of an array of strings."""
    (count,) = struct.unpack_from("<Q", value, 4)
    found, at = [], 12
    for _ in range(count):
        (size,) = struct.unpack_from("<Q", value, at)
        found.append(value[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def parse(path: Path, sizes: dict[int, tuple[int, int]]) -> Raw:
    """Take a sound file apart.

    Args:
        sizes: weights and bytes of a block of each type.
    """
    raw = path.read_bytes()
    version, tensor_count, kv_count = struct.unpack_from("<IQQ", raw, 4)
    at, entries, tensors = 24, [], []
    for _ in range(kv_count):
        key, at = _string(raw, at)
        (kind,) = struct.unpack_from("<I", raw, at)
        end = _after(raw, at + 4, kind)
        entries.append(Entry(key, kind, raw[at + 4 : end]))
        at = end
    for _ in range(tensor_count):
        name, at = _string(raw, at)
        (dims,) = struct.unpack_from("<I", raw, at)
        shape = list(struct.unpack_from(f"<{dims}Q", raw, at + 4))
        kind, offset = struct.unpack_from("<IQ", raw, at + 4 + 8 * dims)
        at += 16 + 8 * dims
        tensors.append(Info(name, shape, kind, offset, b""))
    data = -(-at // 32) * 32
    for t in tensors:
        block, block_bytes = sizes[t.type]
        size = block_bytes
        for n in t.dims:
            size *= n
        t.data = raw[data + t.offset : data + t.offset + size // block]
    return Raw(version, entries, tensors)


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<Q", raw, at)
    return raw[at + 8 : at + 8 + size], at + 8 + size


def _after(raw: bytes, at: int, kind: int) -> int:
    """Where a value ends."""
    if kind == STRING:
        return _string(raw, at)[1]
    if kind != ARRAY:
        return at + struct.calcsize(FORMATS[kind])
    items, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if items != STRING:
        return at + count * struct.calcsize(FORMATS[items])
    for _ in range(count):
        at = _string(raw, at)[1]
    return at
