"""Models that others made: believed once their header makes sense, and llama.cpp has survived them elsewhere."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.sampler.probe import REFUSED
from genius_lite.sampler.process import attempt
from genius_lite.visible import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_checks import check_model
from genius_lite.weights.gguf_file import GGUF

_PROBE = "genius_lite.sampler.probe"
_PATIENCE = 600.0  # seconds; a small model takes one, a large one as long as the disk takes to read it
_LAST_WORDS = re.compile(r"(?:\.\w+:\d+|what\(\)): +(.*)")  # of ggml behind the place in its source, or of C++


def load_untrusted(path: Path, *, quantizer: bool = False, patience: float = _PATIENCE) -> GGUF:
    """Read the header of a model that this program did not make; nothing here opens the file before.

    Args:
        quantizer: whether llama.cpp will quantize the model too.
        patience: seconds that llama.cpp may take.

    Raises:
        UserError: no GGUF, no language model, one that contradicts itself, or one that llama.cpp does not take.
    """
    source = gguf_file.read(path)
    check_model(source)
    _probe(source.path, sum(file.stat().st_size for file in source.files), quantizer, patience)
    return source


def _probe(path: Path, size: int, quantizer: bool, patience: float) -> None:
    """See what becomes of llama.cpp when it loads the file and decodes, in a process of its own."""
    try:
        command = [sys.executable, "-P", "-m", _PROBE, str(path), str(size), *["quantize"] * quantizer]
        ended = attempt(command, patience)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: llama.cpp does not finish loading it within {patience:.0f} s") from None
    if ended.returncode == 0:
        return
    said = ended.stderr.decode("utf-8", errors="replace")
    if ended.returncode == REFUSED:
        reason = ended.stdout.decode("utf-8", errors="replace").strip()
        raise UserError(f"{path}: llama.cpp does not take it: {reason}")
    if ended.returncode < 0:
        words = f", {brief(found[1], 200)}" if (found := _LAST_WORDS.search(said)) else ""
        fate = signal.Signals(-ended.returncode).name + words
        raise UserError(f"{path}: broken GGUF: llama.cpp dies of it ({fate})")
    raise RuntimeError(f"{_PROBE} {path} ended with exit status {ended.returncode}: {said}")
