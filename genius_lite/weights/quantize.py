"""Re-quantize a 16-bit GGUF in this process, through llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import llama_cpp
from gguf.constants import GGMLQuantizationType

from genius_lite.hardware import cores
from genius_lite.recipe import QuantType
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import tensor_bytes


class QuantizeError(RuntimeError):
    """llama_model_quantize gave an error code."""


def quantize(
    merged: Path,
    kind: QuantType,
    source: GGUF,
    out: Path,
    matrix: imatrix.Matrix | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Write `merged` at type `kind` to `out`, with the metadata of `source` byte for byte.

    llama.cpp writes the metadata anew (other order, strings cut at a NUL), so its tensors are put behind the
    source's own key-value section, where only the file type and the quantization version are set.

    Args:
        matrix: how much each column of a tensor matters; tensors that it lacks are quantized without.
        advance: called with bytes as they appear on disk.

    Raises:
        QuantizeError: llama.cpp refused.
    """
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = cores()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    array, _kept_alive = imatrix.as_c_array(matrix or {})
    if matrix:
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    raw = out.with_name(f"{out.name}.raw")
    with _watch_size(raw, advance):
        code = llama_cpp.llama_model_quantize(str(merged).encode(), str(raw).encode(), ctypes.pointer(params))
    if code:
        raise QuantizeError(f"llama_model_quantize failed with code {code} making {kind} from {merged}")
    made = gguf_file.read(raw)
    by_name = {t.name: t for t in made.tensors}
    changed = {k: made.metadata[k] for k in ("general.file_type", "general.quantization_version")}
    gguf_file.write(
        out,
        source,
        made.tensors,
        lambda t: made.raw_blocks(by_name[t.name]),
        changed,
        advance,
    )
    raw.unlink()


def quantized_bytes(source: GGUF, kind: QuantType) -> int:
    """About how large a file of this type is: its main type's bits for every weight."""
    main = kind.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    return tensor_bytes((source.parameters,), GGMLQuantizationType[main])


class _watch_size:
    """Report a file's growth while a call that cannot report it runs."""

    def __init__(self, path: Path, advance: Callable[[int], None]):
        self.path, self.advance, self.seen = path, advance, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.done.wait(0.2):
            size = self.path.stat().st_size if self.path.exists() else 0
            self.advance(size - self.seen)
            self.seen = size
