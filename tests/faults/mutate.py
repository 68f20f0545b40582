"""Broken GGUFs from sound ones: a seed says which of the tiny models is broken, and how.

Every mutation changes the parts of a file, or gives other bytes for it. The first one goes round all of them as seeds
count up, so that a few hundred seeds have seen each several times; some files get a second and a third.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults import raw
from tests.faults.broken_models import MODEL
from tests.faults.raw import ARRAY, BOOL, F32, I32, STRING, U8, U32, U64, Info, Raw
from tests.faults.sound import BASES, SIZES

WILD = (0, 1, 2, 255, (1 << 16) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)

Mutation = Callable[[Raw, Random], bytes | None]


@dataclass(frozen=True)
class Mutant:
    """A broken model: its files by name, the name of the one that is given to the program, and what was done to it."""

    seed: int
    files: dict[str, bytes]
    entry: str
    what: str

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder / self.entry


def mutant(seed: int, sound: dict[str, list[Raw]]) -> Mutant:
    """The broken model of a seed."""
    rng = Random(seed)
    names = [*MUTATIONS]
    first = names[seed % len(names)]
    base = "sharded" if first.startswith("shard") else BASES[seed // len(names) % len(BASES)]
    more = [rng.choice([n for n in names if not n.startswith("shard")]) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    parts = copy.deepcopy(sound[base])
    part = parts[0] if rng.random() < 0.7 else rng.choice(parts)
    other: bytes | None = None
    for name in (first, *more):
        if part.tensors and part.entries:  # else another one left nothing to change
            other = other or MUTATIONS[name](part, rng)
    # What a file of one part is called does not matter, of several it does.
    called = [f"m-{n:05}-of-{len(parts):05}.gguf" if len(parts) > 1 else "m.gguf" for n in range(1, len(parts) + 1)]
    files = {
        name: other if p is part and other is not None else p.encode() for name, p in zip(called, parts, strict=True)
    }
    entry = called[0]
    if first == "shard names":
        changed = rng.choice(called)
        content = files.pop(changed)
        if rng.random() < 0.5:
            files[rng.choice(["m-00004-of-00003.gguf", "n-00001-of-00003.gguf", "m-00000-of-00003.gguf"])] = content
        entry = next(iter(files))
    if first == "shard order":
        files = dict(zip(files, rng.sample(list(files.values()), len(files)), strict=True))
    return Mutant(seed, files, entry, f"{base}: {', '.join((first, *more))}")


def _cut(part: Raw, rng: Random) -> bytes:
    whole, header = part.encode(), len(part.header())
    return whole[: rng.choice((rng.randrange(64), rng.randrange(header), rng.randrange(header, len(whole))))]


def _rubbish(part: Raw, rng: Random) -> bytes:
    start = rng.choice((b"", b"GGUF", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + struct.pack("<QQ", 3, 3)))
    return start + rng.randbytes(rng.choice((0, 1, 20, 5000)))


def _begins_otherwise(part: Raw, rng: Random) -> None:
    part.version = rng.choice((0, 1, 2, 4, 255, 50331648, (1 << 32) - 1))
    if rng.random() < 0.3:
        part.magic = rng.choice((b"FUGG", b"GGML", b"\0\0\0\0", b"gguf"))


def _counts(part: Raw, rng: Random) -> None:
    near = (len(part.tensors) - 1, len(part.tensors) + 1, len(part.entries) - 1, len(part.entries) + 1)
    count = rng.choice((*WILD, *near))
    if rng.random() < 0.5:
        part.tensor_count = count
    else:
        part.kv_count = count


def _lengths(part: Raw, rng: Random) -> None:
    """A text or an array that announces another length than it has."""
    entry = rng.choice([e for e in part.entries if e.kind in (STRING, ARRAY)] or part.entries)
    count = struct.pack("<Q", rng.choice((*WILD, len(entry.value), rng.randrange(1000))))
    at = 4 if entry.kind == ARRAY else 0
    entry.value = entry.value[:at] + count + entry.value[at + 8 :]


def _value_types(part: Raw, rng: Random) -> None:
    """Another type, with a value of that type or with the old bytes."""
    entry = rng.choice(part.entries)
    entry.kind = rng.choice((*range(13), 13, 255, (1 << 32) - 1))
    if rng.random() < 0.7 and entry.kind <= 12:
        values = {STRING: raw.text("text"), ARRAY: raw.array(rng.choice((U8, I32, STRING, F32)), [])}
        wild = rng.choice((0, 1, 2, 64))
        entry.value = values.get(entry.kind) or raw.number(entry.kind, wild)


def _keys(part: Raw, rng: Random) -> None:
    """A key that is there twice, is gone, or is none."""
    entry, chance = rng.choice(part.entries), rng.random()
    if chance < 0.35:
        part.entries.insert(rng.randrange(len(part.entries)), copy.deepcopy(entry))
    elif chance < 0.7:
        part.entries.remove(entry)
    else:
        odd = (b"", b"GGUF.version", b"\xff\xfe", b"a\nb\0c", b"k" * 70_000, b"general.alignment", b"split.count")
        entry.key = rng.choice(odd)


def _texts(part: Raw, rng: Random) -> None:
    odd = (b"", b"\xff\xfe\xc3(", b"a\0b\nc", "\u202e\U0001f600".encode() * 200, b"long " * 50_000, b"x" * (34 << 20))
    key = rng.choice(("general.name", "general.note", "general.type", "general.license", "tokenizer.chat_template"))
    part.put(key, STRING, raw.text(rng.choice(odd if rng.random() < 0.3 else odd[:-1])))


def _arrays(part: Raw, rng: Random) -> None:
    """Arrays in arrays, of nothing, of unknown types, of more than there is, and large ones."""
    nested = raw.array(U32, [1, 2])
    for _ in range(rng.randrange(5)):
        nested = struct.pack("<IQ", ARRAY, 1) + nested
    values = (
        nested,
        struct.pack("<IQ", ARRAY, 1 << 40),
        struct.pack("<IQ", 77, 3) + bytes(64),
        raw.array(rng.choice((U8, STRING, U64)), [], rng.choice(WILD)),
        raw.array(BOOL, [True] * 300_000),
        raw.array(STRING, [b""] * 60_000),
    )
    key = rng.choice((b"general.tags", b"llama.rope.dimension_sections", b"qwen2.own", b"x"))
    part.put(key.decode(), ARRAY, rng.choice(values))


def _alignment(part: Raw, rng: Random) -> None:
    if rng.random() < 0.2:
        part.put("general.alignment", STRING, raw.text("32"))
    else:
        value = rng.choice((0, 1, 3, 8, 16, 24, 64, 4096, 1 << 20, 1 << 31, (1 << 32) - 1))
        part.put("general.alignment", U32, raw.number(U32, value))


def _dims(part: Raw, rng: Random) -> None:
    tensor = rng.choice(part.tensors)
    chance = rng.random()
    if chance < 0.6:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((*WILD, 3, 31, 33, 63, 65, 128))
    elif chance < 0.8:
        tensor.dims = (
            tensor.dims[::-1] if rng.random() < 0.5 else [*tensor.dims, *rng.choice(([1], [1, 1], [0], [2, 2, 2]))]
        )
    else:
        tensor.dims = rng.choice(([], [1] * 5, [1 << 32, 1 << 32], [1 << 63, 2], [1] * 40, [0, 1 << 63], [32]))


def _types(part: Raw, rng: Random) -> None:
    rng.choice(part.tensors).type = rng.choice((*range(45), 255, (1 << 32) - 1))


def _offsets(part: Raw, rng: Random) -> None:
    """Out of the file, not aligned, over each other, or one for another."""
    a, b = rng.choice(part.tensors), rng.choice(part.tensors)
    chance = rng.random()
    if chance < 0.4:
        a.offset = rng.choice((*WILD, a.offset + 1, a.offset + 8, max(0, a.offset - 32), a.offset + 32))
    elif chance < 0.7:
        a.offset = b.offset
    else:
        a.offset, b.offset = b.offset, a.offset


def _tensor_names(part: Raw, rng: Random) -> None:
    tensor, other = rng.choice(part.tensors), rng.choice(part.tensors)
    odd = (b"", b"\xff.weight", b"a\nb", b"n" * 300, b"n" * 70, b"blk.999999999.attn_q.weight", b"blk.2.attn_q.weight")
    tensor.name = other.name if rng.random() < 0.5 else rng.choice((*odd, tensor.name + b"x", tensor.name[:-1]))


def _tensor_list(part: Raw, rng: Random) -> None:
    """One less, one more, all of them or none."""
    chance = rng.random()
    if chance < 0.6:
        part.tensors.remove(rng.choice(part.tensors))
    elif chance < 0.8:
        part.tensors.append(Info(b"extra.weight", [32, 2], rng.choice((0, 1, 24)), 0, bytes(256)))
    else:
        part.tensors = []
    part.place()


def _header_bits(part: Raw, rng: Random) -> bytes:
    return _flipped(part.encode(), rng, 0, len(part.header()), rng.choice((1, 1, 2, 8)))


def _header_bytes(part: Raw, rng: Random) -> bytes:
    """Some bytes of the header are gone, or others are between them."""
    whole = part.encode()
    at = rng.randrange(len(part.header()))
    return whole[:at] + (rng.randbytes(rng.randrange(1, 40)) + whole[at:] if rng.random() < 0.5 else whole[at + 7 :])


def _data_bits(part: Raw, rng: Random) -> bytes:
    whole = part.encode()
    return _flipped(whole, rng, len(part.header()), len(whole), rng.choice((1, 10, 1000)))


def _flipped(whole: bytes, rng: Random, start: int, end: int, count: int) -> bytes:
    changed = bytearray(whole)
    for _ in range(count):
        changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _weights(part: Raw, rng: Random) -> None:
    """NaN, infinity, zeros and the largest numbers among the weights, or wherever these bytes stand."""
    tensor = rng.choice(part.tensors)
    odd = {0: (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1), 1: (0x7E00, 0x7C00, 0xFC00, 0x7BFF, 1)}
    value = struct.pack("<I" if tensor.type == 0 else "<H", rng.choice(odd[0 if tensor.type == 0 else 1]))
    size = SIZES[tensor.type][1]
    at = rng.randrange(len(tensor.data) // size) * size
    tensor.data = tensor.data[:at] + value + tensor.data[at + len(value) :]
    if rng.random() < 0.2:
        tensor.data = bytes([rng.choice((0, 255))]) * len(tensor.data)


def _split(part: Raw, rng: Random) -> None:
    key = rng.choice(("split.count", "split.no", "split.tensors.count"))
    if rng.random() < 0.3:
        part.put(
            key, *rng.choice(((STRING, raw.text("2")), (F32, raw.number(F32, 2)), (BOOL, b"\1"), (I32, b"\xff" * 4)))
        )
    else:
        part.put(key, raw.U16, raw.number(raw.U16, rng.choice((0, 1, 2, 3, 65535))))


def _unchanged(part: Raw, rng: Random) -> None:
    """Nothing is wrong: it must be accepted."""


MUTATIONS: dict[str, Mutation] = {
    "unchanged": _unchanged,
    "cut": _cut,
    "rubbish": _rubbish,
    "begins otherwise": _begins_otherwise,
    "counts": _counts,
    "lengths": _lengths,
    "value types": _value_types,
    "keys": _keys,
    "texts": _texts,
    "arrays": _arrays,
    "alignment": _alignment,
    "dims": _dims,
    "types": _types,
    "offsets": _offsets,
    "tensor names": _tensor_names,
    "tensor list": _tensor_list,
    "header bits": _header_bits,
    "header bytes": _header_bytes,
    "data bits": _data_bits,
    "weights": _weights,
    "split": _split,
    "shard names": _unchanged,
    "shard order": _unchanged,
    **MODEL,
}
