"""Vocabularies in GGUFs without weights: SmolLM2's as that of other models, and one of bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.support.models import MERGED, SPECIAL, tokens

SPECIALS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"


def write_vocabulary(
    path: Path,
    fields: dict,
    template: str | None,
    specials: tuple[str, ...] = SPECIALS,
    adds_bos: bool = False,
    pre: str | None = None,
    size: int | None = None,
) -> Path:
    """Write it with another template and other special tokens, and as if text were cut by another rule.

    Args:
        size: only so many tokens, the most frequent ones.
    """
    tokens = list(fields["tokenizer.ggml.tokens"])[:size]
    held = set(tokens)
    places = [t for t, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == gguf.TokenType.CONTROL]
    for place, text in zip(places, specials, strict=False):
        tokens[place] = text
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or fields["tokenizer.ggml.pre"])
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"][:size])
    writer.add_token_merges([pair for pair in fields["tokenizer.ggml.merges"] if pair.replace(" ", "") in held])
    writer.add_bos_token_id(places[0])
    writer.add_eos_token_id(places[1])
    writer.add_add_bos_token(adds_bos)
    if template is not None:
        writer.add_chat_template(template)
    _close(writer)
    return path


def write_sentencepiece(path: Path, fields: dict, prefixed: bool) -> Path:
    """Write its most frequent texts as a sentencepiece vocabulary, which has scores instead of merges.

    Args:
        prefixed: whether a space stands before every text.
    """
    to_byte = {letter: byte for byte, letter in bytes_to_unicode().items()}
    pieces = []
    both = (fields[f"tokenizer.ggml.{name}"][:8000] for name in ("tokens", "token_type"))
    for token, kind in zip(*both, strict=True):
        if kind == gguf.TokenType.NORMAL:
            try:
                pieces.append(bytes(to_byte[letter] for letter in token).decode().replace(" ", _BLANK))
            except UnicodeDecodeError:  # half a character
                continue
    pieces = [piece for piece in pieces if "\0" not in piece]  # where a text ends, for C
    specials = ["<unk>", "<s>", "</s>", "<|user|>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(pieces)]
    normal = len(tokens) - len(specials) - 256
    of_specials = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 3]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * (len(tokens) - normal) + [-float(rank) for rank in range(normal)])
    writer.add_token_types([*of_specials, *[gguf.TokenType.BYTE] * 256, *[gguf.TokenType.NORMAL] * normal])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(prefixed)
    _close(writer)
    return path


def write_bytes(path: Path, architecture: str, template: str) -> Path:
    """Write the tiny models' vocabulary as that of another family."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens())
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if text in SPECIAL else normal for text in tokens()])
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_chat_template(template)
    _close(writer)
    return path


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
