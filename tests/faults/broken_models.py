"""Mutations of what a GGUF says about its model: architecture, shape, vocabulary and template."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.faults import raw
from tests.faults.raw import ARRAY, BOOL, F32, F64, I8, I32, STRING, U8, U16, U32, U64, Raw

_NAN, _INF = float("nan"), float("inf")
_COUNTS = (0, 1, 2, 3, 5, 63, 65, 128, 1000, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_TOKENS = "tokenizer.ggml.tokens"
_TOKENIZERS = ("", "none", "no_vocab", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4", "x")
_ARCHITECTURES = (
    "", "x", "llama\n", "../llama", "l" * 70, "qwen2", "mistral", "gpt2", "mamba", "bert", "t5", "gemma2", "gemma3",
    "phi3", "clip", "falcon", "bloom", "stablelm", "starcoder2", "lfm2", "qwen3", "llama4", "deepseek2", "gpt-oss",
    "rwkv7", "nemotron",
)  # fmt: skip


def _prefix(part: Raw) -> str:
    found = part.entry("general.architecture")
    return "qwen2" if found and b"qwen2" in found.value else "llama"


def _shape(part: Raw, rng: Random) -> None:
    """Counts of layers, heads, columns and tokens that do not fit the tensors."""
    names = (
        "block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "rope.dimension_count", "expert_count", "expert_used_count", "attention.sliding_window", "nextn_predict_layers",
        "leading_dense_block_count",
    )  # fmt: skip
    key = f"{_prefix(part)}.{rng.choice(names)}"
    if rng.random() < 0.8:
        part.put(key, U32, raw.number(U32, rng.choice(_COUNTS)))
        return
    others = (
        (I32, raw.number(I32, -1)),
        (F32, raw.number(F32, 4)),
        (U64, raw.number(U64, 1 << 63)),
        (U16, raw.number(U16, 4)),
        (BOOL, b"\1"),
        (STRING, raw.text("4")),
        (ARRAY, raw.array(U32, [4, 4])),
        (ARRAY, raw.array(I32, [-1, 1 << 30])),
        (ARRAY, raw.array(U32, [0])),
        (ARRAY, raw.array(STRING, [b"4", b"4"])),
    )
    part.put(key, *rng.choice(others))


def _numbers(part: Raw, rng: Random) -> None:
    """NaN, infinity, zero and negative numbers in rotary embedding and norms; scalings of it."""
    names = (
        "rope.freq_base", "attention.layer_norm_rms_epsilon", "rope.scaling.factor", "rope.scaling.attn_factor",
        "attention.scale", "attention.clamp_kqv", "logit_scale", "expert_weights_scale", "own",
    )  # fmt: skip
    value = rng.choice((_NAN, _INF, -_INF, 0.0, -1.0, -0.0, 1e-38, 3e38, 1.0))
    key = f"{_prefix(part)}.{rng.choice(names)}"
    part.put(key, F64, raw.number(F64, value)) if rng.random() < 0.1 else part.put(key, F32, raw.number(F32, value))
    if rng.random() < 0.3:
        kind = rng.choice(("yarn", "linear", "none", "longrope", "x", ""))
        part.put(f"{_prefix(part)}.rope.scaling.type", STRING, raw.text(kind))
        part.put(f"{_prefix(part)}.rope.scaling.original_context_length", U32, raw.number(U32, rng.choice(_COUNTS)))


def _architecture(part: Raw, rng: Random) -> None:
    """Another name, with the shape under the old name or under the new one."""
    if rng.random() < 0.1:
        part.put("general.architecture", U32, raw.number(U32, 7))
        return
    old, new = _prefix(part).encode(), rng.choice(_ARCHITECTURES).encode()
    part.put("general.architecture", STRING, raw.text(new))
    if rng.random() < 0.6:
        for entry in part.entries:
            entry.key = new + entry.key[len(old) :] if entry.key.startswith(old + b".") else entry.key


def _tokens(part: Raw, rng: Random) -> None:
    """Too few, too many, none, equal ones, no text, long ones."""
    found = part.entry(_TOKENS)
    if not found or found.kind != ARRAY:
        return
    tokens = raw.strings(found.value) if found.value[:4] == struct.pack("<I", STRING) else [b"a"]
    at = rng.randrange(len(tokens) or 1)
    odd = rng.choice(
        (b"", b"\xff\xfe", b"\0", b"t" * 100_000, b" ", b"<0x0A>", b"<0xZZ>", b"<0x>", "\u2581".encode(), b"a")
    )
    changes = (
        tokens[:at],
        [],
        [*tokens, *tokens],
        [*tokens, odd],
        [odd if n == at else token for n, token in enumerate(tokens)],
        [odd if n % 2 else token for n, token in enumerate(tokens)],
        [odd] * len(tokens),
    )
    found.value = raw.array(STRING, rng.choice(changes))


def _special_tokens(part: Raw, rng: Random) -> None:
    names = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "fim_pre", "cls")
    key = f"tokenizer.ggml.{rng.choice(names)}_token_id"
    values = (0, 255, 259, 260, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    if rng.random() < 0.7:
        part.put(key, U32, raw.number(U32, rng.choice(values)))
    else:
        others = ((I32, b"\xff" * 4), (STRING, raw.text("2")), (F32, raw.number(F32, 2)), (ARRAY, raw.array(U32, [1])))
        part.put(key, *rng.choice(others))
    if rng.random() < 0.3:
        part.put(
            f"tokenizer.ggml.add_{rng.choice(('bos', 'eos', 'sep'))}_token", BOOL, rng.choice((b"\0", b"\1", b"\7"))
        )


def _merges(part: Raw, rng: Random) -> None:
    values = (
        [],
        [b"nobody knows"],
        [b"one"],
        [b" "],
        [b""],
        [b"a b c d"],
        ["Ā Ā".encode()] * 5000,
        [b"\xff \xfe"],
        [b"a " + b"b" * 70_000],
        [f"{chr(97 + n % 26)} {chr(97 + n // 26 % 26)}".encode() for n in range(676)],
    )
    part.put("tokenizer.ggml.merges", ARRAY, raw.array(STRING, rng.choice(values)))
    if rng.random() < 0.2:
        part.put("tokenizer.ggml.merges", *rng.choice(((ARRAY, raw.array(U32, [1, 2])), (STRING, raw.text("a b")))))


def _token_arrays(part: Raw, rng: Random) -> None:
    """Scores and types of another length or type, or of wild values."""
    name, kind = rng.choice((("scores", F32), ("token_type", I32)))
    count = rng.choice((0, 1, 259, 260, 260, 260, 261, 5000))
    value = rng.choice((_NAN, _INF, -1e38, 0.0)) if kind == F32 else rng.choice((-1, 0, 2, 3, 4, 5, 6, 7, 1 << 30))
    wrong = rng.random()
    if wrong < 0.7:
        part.put(f"tokenizer.ggml.{name}", ARRAY, raw.array(kind, [value] * count))
    elif wrong < 0.9:
        part.put(f"tokenizer.ggml.{name}", ARRAY, raw.array(rng.choice((U8, F64, U64, BOOL)), [1] * count))
    else:
        part.put(
            f"tokenizer.ggml.{name}", *rng.choice(((ARRAY, raw.array(STRING, [b"1"] * count)), (U32, b"\1\0\0\0")))
        )


def _tokenizer(part: Raw, rng: Random) -> None:
    """Another kind of tokenizer, with what belongs to it or without."""
    part.put("tokenizer.ggml.model", STRING, raw.text(rng.choice(_TOKENIZERS)))
    if rng.random() < 0.5:
        part.put("tokenizer.ggml.scores", ARRAY, raw.array(F32, [-float(n) for n in range(260)]))
    if rng.random() < 0.5:
        pre = rng.choice(("", "default", "llama-bpe", "qwen2", "x", "deepseek-llm", "gpt-4o", "tekken", "kimi-k2"))
        part.put("tokenizer.ggml.pre", STRING, raw.text(pre))
    if rng.random() < 0.3:
        charsmap = raw.array(rng.choice((U8, I8)), [rng.randrange(128) for _ in range(rng.choice((0, 3, 4, 400)))])
        part.put("tokenizer.ggml.precompiled_charsmap", ARRAY, charsmap)
    if rng.random() < 0.3:
        for name in ("add_space_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
            part.put(f"tokenizer.ggml.{name}", BOOL, rng.choice((b"\0", b"\1")))


def _template(part: Raw, rng: Random) -> None:
    values = (
        (U32, b"\1\0\0\0"),
        (ARRAY, raw.array(STRING, [b"{{ messages }}"])),
        (STRING, raw.text(b"\xff\xfe{{ messages }}")),
        (STRING, raw.text("")),
        (STRING, raw.text("{% for")),
        (STRING, raw.text("{{ 1 // 0 }}")),
        (STRING, raw.text("{{ 'a' * 999999999 }}")),
        (STRING, raw.text("no question")),
        (STRING, raw.text("a\0b")),
        (STRING, raw.text("{# " + "x" * (2 << 20) + " #}{{ messages[0].content }}")),
    )
    key = rng.choice(("tokenizer.chat_template", "tokenizer.chat_template", "tokenizer.chat_template.tool_use"))
    part.put(key, *rng.choice(values))


MODEL: dict[str, Callable[[Raw, Random], bytes | None]] = {
    "shape": _shape,
    "more shape": _shape,
    "numbers": _numbers,
    "architecture": _architecture,
    "tokens": _tokens,
    "special tokens": _special_tokens,
    "merges": _merges,
    "token arrays": _token_arrays,
    "tokenizer": _tokenizer,
    "template": _template,
}
