"""Whether a model's header makes sense.

What llama.cpp, gguf, transformers and this program take for granted is checked before any of them relies on it:
some of it they would read beyond an array's end, allocate, or divide by.
"""

from __future__ import annotations

import math
import re

from genius_lite.errors import UserError
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import FLOAT32, INT32, STRING, UINT32, shown

EMBEDDINGS = "token_embd.weight"
_TOKENIZER = "tokenizer.ggml."
_LARGEST = (1 << 31) - 1  # llama.cpp's int32_t
_ALIGNMENT = 32  # bytes; llama.cpp aborts at tensors that are aligned to less
# Counts under the architecture's name, and the least that each may be; a recurrent model has no heads.
_COUNTS = {
    "block_count": 1,
    "context_length": 1,
    "embedding_length": 1,
    "vocab_size": 1,
    "feed_forward_length": 0,
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "attention.key_length": 0,
    "attention.value_length": 0,
    "rope.dimension_count": 0,
    "nextn_predict_layers": 0,
}
_NEEDED = ("block_count", "context_length", "embedding_length")
_WRITTEN = ("general.file_type", "general.quantization_version")  # uint32, which `write` replaces in place
_POSITIVE = ("rope.freq_base",)
_NOT_NEGATIVE = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "rope.scaling.factor")
_TEMPLATE = re.compile(r"tokenizer\.chat_template(\..+)?")
_LONGEST_TEMPLATE = 1 << 20  # characters
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,9})\.")


def check_model(source: GGUF) -> None:
    """Refuse a file that is no language model, or one whose header contradicts itself.

    Raises:
        UserError: the first thing found that cannot be.
    """
    kind = source.metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{source.path}: no model, but {shown(str(kind))} (general.type)")
    if source.alignment % _ALIGNMENT:
        raise _broken(source, f"alignment {source.alignment}; {_ALIGNMENT} or more is needed")
    _check_texts_and_tensors(source)
    _check_numbers(source)
    _check_blocks(source)
    _check_vocabulary(source)


def _broken(source: GGUF, what: str) -> UserError:
    return UserError(f"{source.path}: broken GGUF: {what}")


def _said(value: object) -> str:
    return "an array" if value is None else shown(str(value))


def _check_texts_and_tensors(source: GGUF) -> None:
    for key, value in source.metadata.items():
        if not _is_utf8(key) or (isinstance(value, str) and not _is_utf8(value)):
            raise _broken(source, f"{shown(key)} is no UTF-8 text")
        if _TEMPLATE.fullmatch(key) and not isinstance(value, str):
            raise _broken(source, f"{shown(key)} is no text")
        if _TEMPLATE.fullmatch(key) and len(value) > _LONGEST_TEMPLATE:
            raise _broken(source, f"{shown(key)} has {len(value)} characters; {_LONGEST_TEMPLATE} are read at most")
    if bad := next((t.name for t in source.tensors if not _is_utf8(t.name)), None):
        raise _broken(source, f"the name of a tensor is no UTF-8 text: {shown(bad)}")
    if empty := next((t.name for t in source.tensors if 0 in t.shape), None):
        raise _broken(source, f"{shown(empty)} is empty")


def _is_utf8(text: str) -> bool:
    """Say whether nothing in it stands for a byte that could not be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_numbers(source: GGUF) -> None:
    prefix = f"{source.architecture}."
    own = {key.removeprefix(prefix): value for key, value in source.metadata.items() if key.startswith(prefix)}
    if missing := next((name for name in _NEEDED if name not in own), None):
        raise _broken(source, f"there is no {prefix}{missing}")
    for name, value in own.items():
        least = _COUNTS.get(name, 0)
        if name in _NEEDED or (name in _COUNTS and source.array(prefix + name) is None):
            # bool is an int to Python
            if type(value) is not int or not least <= value <= _LARGEST:
                raise _broken(source, f"{prefix}{name} is {_said(value)}")
        elif isinstance(value, float) and not _is_usable(name, value):
            raise _broken(source, f"{prefix}{name} is {value}")
    if own.get("attention.causal") is False:
        raise UserError(f"{source.path}: no model that continues text: its attention is not causal")
    for key in _WRITTEN:
        if key in source.value_at and source.kind(key) != UINT32:
            raise _broken(source, f"{key} is no uint32")
    heads, kv_heads = own.get("attention.head_count"), own.get("attention.head_count_kv")
    if heads and "attention.key_length" not in own and own["embedding_length"] % heads:
        raise _broken(source, f"{heads} heads do not share {own['embedding_length']} columns evenly")
    if heads and kv_heads is not None and (kv_heads == 0 or heads % kv_heads):
        raise _broken(source, f"{heads} heads do not share {kv_heads} key-value heads evenly")


def _is_usable(name: str, value: float) -> bool:
    if name in _POSITIVE:
        return 0 < value < math.inf
    return math.isfinite(value) and (value >= 0 or name not in _NOT_NEGATIVE)


def _check_blocks(source: GGUF) -> None:
    """See that the blocks with tensors are those that the header counts; prediction layers may be left out."""
    prefix = source.architecture
    count, extra = source.metadata[f"{prefix}.block_count"], source.count(f"{prefix}.nextn_predict_layers") or 0
    last = max((int(found[1]) for t in source.tensors if (found := _BLOCK.match(t.name))), default=-1)
    if not count - extra <= last + 1 <= count:
        raise _broken(source, f"{prefix}.block_count is {count}, the tensors are of {last + 1} blocks")


def _check_vocabulary(source: GGUF) -> None:
    shape = next((t.shape for t in source.tensors if t.name == EMBEDDINGS), ())
    if len(shape) != 2:
        raise _broken(source, f"there is no matrix {EMBEDDINGS}")
    model = source.metadata.get(f"{_TOKENIZER}model")
    if not isinstance(model, str) or model in ("", "none", "no_vocab"):
        raise _broken(source, "it names no tokenizer")
    rows, tokens = shape[0], source.array(f"{_TOKENIZER}tokens")
    if tokens != (STRING, rows):
        raise _broken(source, f"it has embeddings of {rows} tokens, but not as many texts of tokens")
    for name, kinds in (("scores", (FLOAT32,)), ("token_type", (INT32, UINT32))):
        key = _TOKENIZER + name
        if key in source.value_at and source.array(key) not in [(kind, rows) for kind in kinds]:
            raise _broken(source, f"{key} is no array of {rows} numbers")
    merges = source.array(f"{_TOKENIZER}merges")
    if f"{_TOKENIZER}merges" in source.value_at and (not merges or merges[0] != STRING):
        raise _broken(source, f"{_TOKENIZER}merges is no array of texts")
    for name in ("bos", "eos", "eot"):
        value = source.metadata.get(key := f"{_TOKENIZER}{name}_token_id", 0)
        if type(value) is not int or not 0 <= value < rows:
            raise _broken(source, f"{key} is {_said(value)}, and there are {rows} tokens")
