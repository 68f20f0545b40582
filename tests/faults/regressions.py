"""Files that once crashed something, hung it, or were misread: each by name, with what the program must say of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

from tests.faults import raw
from tests.faults.mutate import Mutant
from tests.faults.raw import ARRAY, F32, I32, STRING, U8, U16, U32, Info, Raw

ACCEPTED = ""
_TOKENS = 260
Change = Callable[[Raw], None]


def _set(key: str, kind: int, value: bytes) -> Change:
    return lambda part: part.put(key, kind, value)


def _without(name: str) -> Change:
    def change(part: Raw) -> None:
        part.tensors = [t for t in part.tensors if t.name != name.encode()]
        part.place()

    return change


def _number(key: str, value: int) -> Change:
    return _set(key, U32, raw.number(U32, value))


def _tensor(name: str, change: Callable[[Info], None]) -> Change:
    def changed(part: Raw) -> None:
        change(next(t for t in part.tensors if t.name == name.encode()))
        part.place()

    return changed


def _aligned_to_16(part: Raw) -> None:
    part.put("general.alignment", U32, raw.number(U32, 16))
    part.alignment = 16
    part.tensors.insert(0, Info(b"extra", [4], 0, 0, bytes(16)))
    part.place()


def _tokens_of_rwkv(part: Raw) -> None:
    part.put("tokenizer.ggml.model", STRING, raw.text("rwkv"))


def _tokens_of_one_text(part: Raw) -> None:
    found = part.entry("tokenizer.ggml.tokens")
    assert found
    tokens = raw.strings(found.value)
    found.value = raw.array(STRING, [*tokens[:-1], tokens[65]])


def _nan(info: Info) -> None:
    info.data = b"\x00\x00\xc0\x7f" + info.data[4:]


def _nan_at_the_end(info: Info) -> None:
    info.data = info.data[:-2] + b"\x00\x7e"


def _as_16_bits(info: Info) -> None:
    info.type = 30  # BF16, the upper halves of F32
    info.data = b"".join(info.data[n + 2 : n + 4] for n in range(0, len(info.data), 4))


def _as_integers(info: Info) -> None:
    info.type = 25  # I16, as long as F16


def _dims(*dims: int) -> Callable[[Info], None]:
    return lambda info: info.dims.__setitem__(slice(None), dims)


CASES: dict[str, tuple[str, Change, str]] = {
    # name: (the sound model, what is changed, a part of the line)
    "llama.cpp aborts when it maps tensors that are not aligned": ("llama", _aligned_to_16, "alignment 16"),
    "llama.cpp tokenizes for ever": ("llama", _tokens_of_rwkv, "llama.cpp dies of it (SIGABRT"),
    "llama.cpp asserts that no two tokens have one text": (
        "llama",
        _tokens_of_one_text,
        "llama.cpp dies of it (SIGABRT, GGML_ASSERT",
    ),
    "llama.cpp reads scores beyond their end": (
        "llama",
        _set("tokenizer.ggml.scores", ARRAY, raw.array(F32, [0.0])),
        "tokenizer.ggml.scores is no array of 260 numbers",
    ),
    "llama.cpp reads bytes as token types": (
        "llama",
        _set("tokenizer.ggml.token_type", ARRAY, raw.array(U8, [1] * _TOKENS)),
        "tokenizer.ggml.token_type is no array of 260 numbers",
    ),
    "llama.cpp asserts on experts that are never used": (
        "llama",
        _number("llama.expert_count", 8),
        "llama.cpp dies of it (SIGABRT, GGML_ASSERT",
    ),
    "llama.cpp asserts on a rotary width": ("qwen2", _number("qwen2.rope.dimension_count", 8), "GGML_ASSERT"),
    "llama.cpp asserts on a file type that is text": (
        "llama",
        _set("general.file_type", STRING, raw.text("F16")),
        "general.file_type is no uint32",
    ),
    "gguf keeps its own fields under such a key": ("llama", _number("GGUF.version", 3), "a key that is `GGUF.version`"),
    "gguf wants forty bytes for each of a text": (
        "llama",
        _set("general.note", STRING, raw.text("x" * (20 << 20))),
        ACCEPTED,
    ),
    "a text that nobody wrote": (
        "llama",
        _set("general.note", STRING, raw.text("x" * (40 << 20))),
        "a text of 41943040 bytes where at most 33554432 are expected",
    ),
    "a header that nobody wrote": (
        "llama",
        _set("llama.own", ARRAY, raw.array(U8, [])[:4] + (70 << 20).to_bytes(8, "little") + bytes(70 << 20)),
        "a header of more than 64 MB",
    ),
    "gguf and transformers do not see a long array": (
        "llama",
        _set("llama.own", ARRAY, raw.array(U8, [0] * 1_000_000)),
        ACCEPTED,
    ),
    "a matrix of nothing times everything": (
        "llama",
        _tensor("blk.0.ffn_up.weight", _dims(0, 1 << 63)),
        "`blk.0.ffn_up.weight` is [9223372036854775808, 0]",
    ),
    "a matrix of nothing": ("llama", _tensor("blk.0.ffn_up.weight", _dims(64, 0)), "`blk.0.ffn_up.weight` is empty"),
    "a matrix that is a stack of one": (
        "qwen2",
        _tensor("blk.1.ffn_gate.weight", _dims(64, 96, 1)),
        "`blk.1.ffn_gate.weight` is [1, 96, 64]",
    ),
    "transformers invents the weights of a layer": (
        "llama",
        _number("llama.block_count", 3),
        "llama.block_count is 3, the tensors are of 2 blocks",
    ),
    "transformers invents biases": (
        "qwen2",
        _without("blk.1.attn_k.bias"),
        "no weights for `model.layers.1.self_attn.k_proj.bias`",
    ),
    "transformers takes the vocabulary's size from a key": ("llama", _number("llama.vocab_size", 1 << 30), ACCEPTED),
    "torch refuses a padding token beyond the vocabulary": (
        "llama",
        _number("tokenizer.ggml.padding_token_id", (1 << 32) - 1),
        ACCEPTED,
    ),
    "an end token beyond the vocabulary": (
        "llama",
        _number("tokenizer.ggml.eos_token_id", _TOKENS),
        "tokenizer.ggml.eos_token_id is `260`, and there are 260 tokens",
    ),
    "key-value heads of each layer": (
        "llama",
        _set("llama.attention.head_count_kv", ARRAY, raw.array(U32, [2, 2])),
        "transformers cannot read its header: Field 'num_key_value_heads'",
    ),
    "a norm that is not a number": ("llama", _tensor("output_norm.weight", _nan), "its logits are not finite"),
    "a token that is not a number, and that nobody writes": (
        "qwen2",
        _tensor("token_embd.weight", _nan_at_the_end),
        "`token_embd.weight` holds a weight that is no finite 16-bit number",
    ),
    "llama.cpp aborts at norms of 16 bits": (
        "llama",
        _tensor("blk.0.attn_norm.weight", _as_16_bits),
        "llama.cpp dies of it (SIGABRT, binary_op: unsupported types",
    ),
    "llama.cpp crashes at matrices of integers": (
        "qwen2",
        _tensor("blk.0.ffn_up.weight", _as_integers),
        "is I16, a type that cannot be imported",
    ),
    "no heads": ("llama", _number("llama.attention.head_count", 0), "transformers cannot read its header"),
    "a context of nothing": ("llama", _number("llama.context_length", 0), "llama.context_length is `0`"),
    "a template that is a list": (
        "llama",
        _set("tokenizer.chat_template", ARRAY, raw.array(STRING, [b"{{ messages }}"])),
        "`tokenizer.chat_template` is no text",
    ),
    "one of no files": ("llama", _set("split.count", U16, raw.number(U16, 0)), "split.count is 0"),
    "one of minus one files": ("llama", _set("split.count", I32, raw.number(I32, -1)), "split.count is -1"),
}


def regression(name: str, sound: dict[str, list[Raw]]) -> Mutant:
    """The file of a case."""
    base, change, _ = CASES[name]
    part = copy.deepcopy(sound[base][0])
    change(part)
    return Mutant(-1, {"m.gguf": part.encode()}, "m.gguf", name)
