"""Let llama.cpp try a file in a process of its own: `python -m genius_lite.sampler.probe FILE BYTES [HOW...]`.

llama.cpp aborts, crashes or never ends on some files that are broken. Here it only takes this process with it; the run,
which opens the same file afterwards, reads the exit status.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil

from genius_lite.data.sandbox import limit_this_process
from genius_lite.data.vocabulary import Vocabulary
from genius_lite.hardware.system import cores
from genius_lite.text import brief

REFUSED = 3
"""Exit status for a file that llama.cpp cannot load; the reason is one line on standard output."""

_ERROR = 4  # ggml_log_level
_SECONDS, _BYTES_A_SECOND = 60, 100_000_000  # of computing; real models take one or two, and large ones more
_THREADS = 2  # more of them, spinning on a busy machine, used up all those seconds in 13
_MEMORY = 512_000_000  # bytes beyond the file's own size
_PREFIX = re.compile(r"(\w+: |error loading model( \w+)?: )*")
_LONGEST, _MOST_WORDS = 300, 100  # characters of a reason; pieces that llama.cpp says
_CONTEXT, _DECODED = 16, 3  # tokens of the context that is tried, and that are decoded in it
# Every byte that UTF-8 has, digits and words, line breaks and spaces of all kinds, and scripts with rules of their own.
_SAMPLE = "".join(
    [
        *map(chr, range(0x80)),
        *map(chr, range(0x80, 0x800, 63)),
        *map(chr, (0x0E01, 0x1100, 0x2028, 0x3000, 0x4E00, 0x5B57, 0x6F22, 0x7A2E, 0x8A9E, 0x9F8D, 0xAC00, 0xFB01)),
        *map(chr, range(0x10000, 0x110000, 0x3FFFF)),
        " the quick  brown\t\tfox's 1234567890 jumps,\r\n\r\n   over\n\n\n",
    ]
)
_ACCESS_VIOLATION = -1073741819  # as a process on Windows ends with 0xC0000005


class _Refused(Exception):
    """llama.cpp said no, in an orderly way."""


def main() -> None:
    """Exit with 0 if llama.cpp takes the file."""
    words: list[str] = []

    @llama_cpp.llama_log_callback
    def heard(level: int, text: bytes, data: Any) -> None:
        if level == _ERROR and len(words) < _MOST_WORDS:
            words.append(text.decode("utf-8", errors="replace"))

    # The C libraries print to descriptor 1 when they like.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama_cpp.llama_log_set(heard, ctypes.c_void_p(0))
    try:
        path, size, *ways = sys.argv[1:]
        examine(Path(path), int(size), quantizer="quantize" in ways, vocabulary_only="vocabulary" in ways)
    except (_Refused, MemoryError) as refused:
        print(_reason(str(refused) or "it takes too much memory", words), file=out, flush=True)
        raise SystemExit(REFUSED) from None
    except OSError as e:
        if sys.platform != "win32":
            raise
        print(e, file=sys.stderr, flush=True)  # ctypes makes one of a crash within llama.cpp
        os._exit(e.winerror or _ACCESS_VIOLATION)


def examine(path: Path, size: int, *, quantizer: bool, vocabulary_only: bool) -> None:
    """Take llama.cpp through what it does with a model: load it, spell, decode, and plan to quantize it."""
    llama_cpp.llama_backend_init()
    space = psutil.Process().memory_info().vms + size + _MEMORY
    limit_this_process(_SECONDS + size // _BYTES_A_SECOND, space)
    no_devices = (ctypes.c_void_p * 1)(None)
    params = llama_cpp.llama_model_default_params()
    params.devices = ctypes.cast(no_devices, ctypes.c_void_p)  # pyright: ignore[reportAttributeAccessIssue]
    # The weights stay in the file, from where the system takes them page by page and gives them back when it likes.
    params.n_gpu_layers, params.load_mode, params.use_extra_bufts = 0, llama_cpp.LLAMA_LOAD_MODE_MMAP, False
    params.vocab_only = vocabulary_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise _Refused("it does not load")
    vocabulary = Vocabulary(model)
    tokens = _spell(vocabulary)
    if not vocabulary_only:
        _decode(model, vocabulary, tokens)
    if quantizer:
        _plan_quantizing(path)


def _spell(vocabulary: Vocabulary) -> list[int]:
    """Spell every token as text, and text as tokens, which are given back."""
    tokens = (llama_cpp.llama_token * vocabulary.size)(*range(vocabulary.size))
    for special in (False, True):
        # llama.cpp spells them all, and says with a negative number that there is no room for them.
        llama_cpp.llama_detokenize(vocabulary.handle, tokens, len(tokens), b"", 0, False, special)
    try:
        for special in (False, True):
            found = vocabulary.encode(_SAMPLE + vocabulary.bos_text + vocabulary.eos_text, special=special, bos=True)
            if len(found) < _DECODED or not all(0 <= token < vocabulary.size for token in found):
                raise _Refused("its vocabulary does not cover plain text")
    except RuntimeError as e:
        raise _Refused(f"its vocabulary is broken: {e}") from None
    return found


def _decode(model: Any, vocabulary: Vocabulary, tokens: list[int]) -> None:
    """Decode two tokens together and one alone: every operation of the model runs once, on all of its weights."""
    if not (llama_cpp.llama_model_has_decoder(model) and not llama_cpp.llama_model_has_encoder(model)):
        raise _Refused("it is no model that continues text")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT
    params.n_threads = params.n_threads_batch = min(cores(), _THREADS)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise _Refused("it gives no context")
    for part in (tokens[:2], tokens[2:3]):
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * len(part))(*part), len(part))
        if code := llama_cpp.llama_decode(context, batch):
            raise _Refused(f"it does not decode (code {code})")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        if not logits or not np.isfinite(np.ctypeslib.as_array(logits, (vocabulary.size,)).max()):
            raise _Refused("its logits are not finite")


def _plan_quantizing(path: Path) -> None:
    """Plan which type every tensor would get; whether that is possible is seen when it is done."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.dry_run = params.allow_requantize = True
    params.nthread, params.ftype = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    llama_cpp.llama_model_quantize(str(path).encode(), os.devnull.encode(), ctypes.pointer(params))


def _reason(what: str, words: list[str]) -> str:
    """Give the reason in one line: llama.cpp's own words if it said why."""
    said = (_PREFIX.sub("", word.strip()) for word in words)
    found = next((line for line in said if line and not line.startswith("failed to load model")), what)
    return brief(found, _LONGEST)


if __name__ == "__main__":
    main()
