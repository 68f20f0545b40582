"""Models that others made: believed once their header makes sense, and llama.cpp has survived them elsewhere.

What llama.cpp, gguf, transformers and this program take for granted of a header is checked before any of them relies
on it: some of it they would read beyond an array's end, allocate, or divide by.
"""

from __future__ import annotations

import math
import re
import signal
import subprocess
from pathlib import Path

from genius_lite.data.sandbox import KILLED, attempt, fate, helper
from genius_lite.errors import UserError
from genius_lite.sampler.probe import REFUSED
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import EMBEDDINGS, GGUF
from genius_lite.weights.gguf_header import FLOAT32, INT32, STRING, UINT32, block_of, broken, shown

TOKENIZER = "tokenizer.ggml."
_LARGEST = (1 << 31) - 1  # llama.cpp's int32_t
_ALIGNMENT = 32  # bytes; llama.cpp aborts at tensors that are aligned to less
_NEEDED = ("block_count", "context_length", "embedding_length")
# Counts under the architecture's name, and the least that each may be; a recurrent model has no heads.
_COUNTS = {
    **dict.fromkeys((*_NEEDED, "vocab_size"), 1),
    **dict.fromkeys(("expert_count", "expert_used_count", "attention.head_count", "attention.head_count_kv"), 0),
    **dict.fromkeys(("feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length"), 0),
    **dict.fromkeys(("attention.key_length", "attention.value_length", "attention.sliding_window"), 0),
    **dict.fromkeys(("rope.dimension_count", "rope.scaling.original_context_length", "nextn_predict_layers"), 0),
}
_WRITTEN = ("general.file_type", "general.quantization_version")  # uint32, as `write` writes them
_UNDECODED = re.compile("[\udc80-\udcff]")  # what stands for a byte that is no UTF-8
_NOT_NEGATIVE = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "rope.scaling.factor")
_TEMPLATE = re.compile(r"tokenizer\.chat_template(\..+)?")
_LONGEST_TEMPLATE = 1 << 20  # characters
_PROBE = "genius_lite.sampler.probe"
_ILLEGAL_INSTRUCTION = 0xC000001D  # Windows' SIGILL
_PATIENCE = 600.0  # seconds; a small model takes one, a large one as long as the disk takes to read it
_LAST_WORDS = re.compile(r"(?:\.\w+:\d+|what\(\)): +(.*)")  # of ggml behind the place in its source, or of C++


_vouched: set[tuple[int, int, int, int]] = set()  # files that this process made, or that llama.cpp survived
_survived: set[tuple[tuple[int, int, int, int] | str, ...]] = set()  # files of a model, and the ways it was tried in


def vouch(path: Path) -> None:
    """Say that this process has just made a file: `prove` takes it as it is."""
    _vouched.add(_file(path))


def is_vouched(path: Path) -> bool:
    """Say whether this process has made a file, or seen llama.cpp survive it, and nobody has changed it since."""
    return _file(path) in _vouched


def prove(path: Path, *, vocabulary_only: bool = False) -> None:
    """Refuse, as `load_untrusted`, a file of a run folder that llama.cpp does not survive, unless this process made it.

    A run folder may come from an archive: its models are strangers' as any other.
    """
    if not is_vouched(path):
        load_untrusted(path, vocabulary_only=vocabulary_only)


def _file(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def load_untrusted(path: Path, *, quantizer: bool = False, vocabulary_only: bool = False) -> GGUF:
    """Read the header of a model that this program did not make; nothing here opens the file before.

    Args:
        quantizer: whether llama.cpp will quantize the model too.
        vocabulary_only: whether nothing else of it will be used; its weights are not read then.

    Raises:
        UserError: no GGUF, no language model, one that contradicts itself, or one that llama.cpp does not take.
    """
    source = gguf_file.read(path)
    check_model(source)
    ways = ["quantize"] * quantizer + ["vocabulary"] * vocabulary_only
    tried = (*map(_file, source.files), *ways)
    if tried not in _survived:
        _probe(source.path, sum(file.stat().st_size for file in source.files), ways)
        _survived.add(tried)
    if not vocabulary_only:
        vouch(source.path)
    return source


def _probe(path: Path, size: int, ways: list[str]) -> None:
    """See what becomes of llama.cpp when it loads the file and decodes, in a process of its own."""
    try:
        command = helper(_PROBE, str(path), str(size), *ways)
        ended = attempt(command, _PATIENCE)
        if ended.returncode == -KILLED:  # for want of memory, or by a person: no fault of the file
            ended = attempt(command, _PATIENCE)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: llama.cpp does not finish loading it within {_PATIENCE:.0f} s") from None
    if ended.returncode == 0:
        return
    said = ended.stderr.decode("utf-8", errors="replace")
    if ended.returncode == REFUSED:
        reason = ended.stdout.decode("utf-8", errors="replace").strip()
        raise UserError(f"{path}: llama.cpp does not take it: {reason}")
    if ended.returncode == -KILLED:
        killed = "the process in which llama.cpp tries it was killed twice (SIGKILL), as for want of memory"
        raise UserError(f"{path}: {killed}; close other programs, or raise the memory limit")
    if ended.returncode in (-signal.SIGILL, _ILLEGAL_INSTRUCTION):
        raise UserError("llama.cpp was compiled for another processor; genius-lite doctor says how to compile it here")
    if killer := fate(ended.returncode):
        words = f", {brief(found[1], 200)}" if (found := _LAST_WORDS.search(said)) else ""
        raise UserError(f"{path}: broken GGUF: llama.cpp dies of it ({killer}{words})")
    raise RuntimeError(f"{_PROBE} {path} ended with exit status {ended.returncode}: {said}")


def check_model(source: GGUF) -> None:
    """Refuse a file that is no language model, or one whose header contradicts itself, by the first thing found."""
    kind = source.metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{source.path}: no model, but {shown(str(kind))} (general.type)")
    if source.alignment % _ALIGNMENT:
        raise broken(source.path, f"alignment {source.alignment}; {_ALIGNMENT} or more is needed")
    _check_texts_and_tensors(source)
    _check_numbers(source)
    _check_blocks(source)
    _check_vocabulary(source)


def _said(value: object) -> str:
    return "an array" if value is None else shown(str(value))


def _check_texts_and_tensors(source: GGUF) -> None:
    for key, value in source.metadata.items():
        if _UNDECODED.search(key) or (isinstance(value, str) and _UNDECODED.search(value)):
            raise broken(source.path, f"{shown(key)} is no UTF-8 text")
        if _TEMPLATE.fullmatch(key) and not (isinstance(value, str) and len(value) <= _LONGEST_TEMPLATE):
            raise broken(source.path, f"{shown(key)} is no text of at most {_LONGEST_TEMPLATE} characters")
    if bad := next((t.name for t in source.tensors if _UNDECODED.search(t.name)), None):
        raise broken(source.path, f"the name of a tensor is no UTF-8 text: {shown(bad)}")
    if empty := next((t.name for t in source.tensors if 0 in t.shape), None):
        raise broken(source.path, f"{shown(empty)} is empty")


def _check_numbers(source: GGUF) -> None:
    prefix = f"{source.architecture}."
    own = {key.removeprefix(prefix): value for key, value in source.metadata.items() if key.startswith(prefix)}
    if missing := next((name for name in _NEEDED if name not in own), None):
        raise broken(source.path, f"there is no {prefix}{missing}")
    for name, value in own.items():
        least = _COUNTS.get(name, 0)
        if name in _NEEDED or (name in _COUNTS and source.array(prefix + name) is None):
            # bool is an int to Python
            if type(value) is not int or not least <= value <= _LARGEST:
                raise broken(source.path, f"{prefix}{name} is {_said(value)}")
        elif isinstance(value, float):
            usable = value > 0 if name == "rope.freq_base" else value >= 0 or name not in _NOT_NEGATIVE
            if not (usable and math.isfinite(value)):
                raise broken(source.path, f"{prefix}{name} is {value}")
    if own.get("attention.causal") is False:
        raise UserError(f"{source.path}: no model that continues text: its attention is not causal")
    for key in _WRITTEN:
        if key in source.values and source.kind(key) != UINT32:
            raise broken(source.path, f"{key} is no uint32")
    heads, kv_heads = own.get("attention.head_count"), own.get("attention.head_count_kv")
    if heads and "attention.key_length" not in own and own["embedding_length"] % heads:
        raise broken(source.path, f"{heads} heads do not share {own['embedding_length']} columns evenly")
    if heads and kv_heads is not None and (kv_heads == 0 or heads % kv_heads):
        raise broken(source.path, f"{heads} heads do not share {kv_heads} key-value heads evenly")


def _check_blocks(source: GGUF) -> None:
    """See that the blocks with tensors are those that the header counts; prediction layers may be left out."""
    count, extra = source.own("block_count"), source.own("nextn_predict_layers")
    last = max((block for t in source.tensors if (block := block_of(t.name)) is not None), default=-1)
    if not count - extra <= last + 1 <= count:
        raise broken(source.path, f"{source.architecture}.block_count is {count}, the tensors are of {last + 1} blocks")


def _check_vocabulary(source: GGUF) -> None:
    table = source.by_name.get(EMBEDDINGS)
    if not table or len(table.shape) != 2:
        raise broken(source.path, f"there is no matrix {EMBEDDINGS}")
    model = source.metadata.get(f"{TOKENIZER}model")
    if not isinstance(model, str) or model in ("", "none", "no_vocab"):
        raise broken(source.path, "it names no tokenizer")
    rows, tokens = table.rows, source.array(f"{TOKENIZER}tokens")
    if tokens != (STRING, rows):
        raise broken(source.path, f"it has embeddings of {rows} tokens, but not as many texts of tokens")
    for name, kinds in (("scores", (FLOAT32,)), ("token_type", (INT32, UINT32))):
        key = TOKENIZER + name
        if key in source.values and source.array(key) not in [(kind, rows) for kind in kinds]:
            raise broken(source.path, f"{key} is no array of {rows} numbers")
    merges = source.array(f"{TOKENIZER}merges")
    if f"{TOKENIZER}merges" in source.values and (not merges or merges[0] != STRING):
        raise broken(source.path, f"{TOKENIZER}merges is no array of texts")
    for name in ("bos", "eos", "eot"):
        value = source.metadata.get(key := f"{TOKENIZER}{name}_token_id", 0)
        if type(value) is not int or not 0 <= value < rows:
            raise broken(source.path, f"{key} is {_said(value)}, and there are {rows} tokens")
