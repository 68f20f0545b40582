"""What type each tensor of a GGUF gets, and rows in that type: llama.cpp decides and quantizes, in this process."""

from __future__ import annotations

import ctypes
import os
import re

import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, LlamaFileType
from gguf.constants import GGMLQuantizationType as T

from genius_lite.hardware.gpus import ggml_function
from genius_lite.recipe import TargetType
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import tensor_bytes
from genius_lite.weights.grid import has_grid

Types = dict[str, T]
"""Tensor name -> the type that it is written in."""

# [   3/ 272] blk.0.attn_k.weight - [   576,  192,    1,    1], type =   q4_1, size =   0.07 MiB ->   0.07 MiB (q5_0)
_PLANNED = re.compile(r"\[\s*\d+/\s*\d+\] +(\S+) +- \[.*?\], type = +\w+, size = .*?MiB(?: -> .*?MiB \((\w+)\))?$")
_MANY_BITS = 6.5  # for a weight: from here on a second quantization adds little
_NEAR = {True: T.Q4_K, False: T.Q5_0}  # for types without a known grid, by whether columns come in blocks of 256

_quantize_chunk = ggml_function("quantize_chunk", ctypes.c_size_t, "ipplllp")
_requires_importance = ggml_function("quantize_requires_imatrix", ctypes.c_bool, "i")


def types_of(source: GGUF, kind: TargetType) -> Types:
    """Ask llama.cpp's quantizer which type it gives each tensor in a file of type `kind`.

    It says it in the log of a dry run; a RuntimeError where a version does not say so of every tensor, in these words.
    """
    own = {t.name: t.type for t in source.tensors}
    if kind == "source":
        return own
    said: list[str] = []

    @llama_cpp.llama_log_callback
    def heard(level: int, text: bytes, data: object) -> None:
        said.append(text.decode("utf-8", errors="replace"))

    params = llama_cpp.llama_model_quantize_default_params()
    params.dry_run = params.allow_requantize = True
    params.nthread, params.ftype = 1, LlamaFileType[f"MOSTLY_{kind}"]
    llama_cpp.llama_log_set(heard, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(str(source.path).encode(), os.devnull.encode(), ctypes.pointer(params))
    finally:
        llama_cpp.llama_log_set(_ignored, ctypes.c_void_p(0))
    planned = (_PLANNED.fullmatch(line.strip()) for line in "".join(said).splitlines())
    found = {m[1]: T[m[2].upper()] if m[2] else own[m[1]] for m in planned if m and m[1] in own}
    if code or found.keys() != own.keys():
        raise RuntimeError(f"llama.cpp planned {len(found)} of {len(own)} tensors of {source.path} (code {code})")
    return found


@llama_cpp.llama_log_callback
def _ignored(level: int, text: bytes, data: object) -> None:
    """Ignore what llama.cpp says here, where nobody reads it; the engine's processes have a log of their own."""


def adaptable(types: Types, source: GGUF, adapted: set[str]) -> Types:
    """Return the same types, but 4 to 5 bits for adapted tensors of a type whose grid is not known."""
    unknown = [name for name in adapted if not has_grid(types[name]) and types[name] != T.F32]
    return types | {name: _NEAR[source.by_name[name].columns % 256 == 0] for name in unknown}


def quantize_rows(weights: np.ndarray, kind: T, importance: np.ndarray | None = None) -> np.ndarray:
    """Quantize rows to type `kind` as llama.cpp does: bytes (uint8, flat).

    Args:
        weights: float32 (rows, columns).
        importance: how much each column matters, float32 (columns,); without it all matter alike.
    """
    weights = np.ascontiguousarray(weights, np.float32)
    if kind == T.F32:
        return weights.reshape(-1).view(np.uint8)
    if importance is None and _requires_importance(kind):  # as of experts, which nothing is known of; it would abort
        importance = np.ones(weights.shape[1], np.float32)
    matters = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if matters is None else matters.ctypes.data
    made = np.empty(tensor_bytes(weights.shape, kind), np.uint8)
    written = _quantize_chunk(kind, weights.ctypes.data, made.ctypes.data, 0, *weights.shape, pointer)
    assert written == made.nbytes
    return made


def file_metadata(source: GGUF, kind: TargetType, types: Types) -> dict[str, int]:
    """Return what a file of these types says of itself: `general.file_type`, and a version where it is quantized."""
    file_type = source.metadata.get("general.file_type") if kind == "source" else LlamaFileType[f"MOSTLY_{kind}"]
    found: dict[str, int] = {} if file_type is None else {"general.file_type": file_type}
    if any(GGML_QUANT_SIZES[t][0] > 1 for t in types.values()):
        found["general.quantization_version"] = GGML_QUANT_VERSION
    return found


def quantized_twice(source: GGUF, kind: TargetType) -> str | None:
    """Warn where a file of few bits becomes one of another type of few bits; None where it does not.

    Rounded onto a second coarse grid a model is up to twice as far from itself as on the first one alone, whatever it
    learned (`tests/benchmarks/RESULTS.md`, Q4_0 as Q5_K_M). Measured too, but not understood: Q5_K_M as Q8_0.
    """
    matrices = [t for t in source.tensors if len(t.shape) > 1 and t.name.startswith("blk.")]
    bits = 8 * sum(t.nbytes for t in matrices) / max(1, sum(t.rows * t.columns for t in matrices))
    wanted = 8 * quantized_bytes(source, kind) / source.parameters
    if kind == "source" or kind == (own := type_name(source, "source")):
        return None
    of_five = sum(t.nbytes for t in matrices if t.type in (T.Q5_1, T.Q5_K))
    five_as_eight = kind == "Q8_0" and 2 * of_five > sum(t.nbytes for t in matrices)
    if max(bits, wanted) >= _MANY_BITS and not five_as_eight:
        return None
    return (
        f"{source.path.name} is {own}, and as {kind} it is quantized a second time, which moves it up to twice as far "
        f"from itself; quantize.type: source keeps it where it is, {'' if five_as_eight else 'Q8_0 and '}BF16 nearly"
    )


def type_name(source: GGUF, kind: TargetType) -> str:
    """Name the type as in a file's name: `source` is whatever the source's header says, such as Q4_K_M."""
    if kind != "source":
        return kind
    said = source.metadata.get("general.file_type")  # it may say none, or a newer one
    name = next((each.name for each in LlamaFileType if each == said), "source")
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def types_bytes(source: GGUF, types: Types) -> int:
    """Sum the bytes of all tensors in these types."""
    return sum(tensor_bytes(t.shape, types[t.name]) for t in source.tensors)


def quantized_bytes(source: GGUF, kind: TargetType) -> int:
    """Estimate how large a file of this type is: its main type's bits for every weight."""
    if kind == "source":
        return sum(t.nbytes for t in source.tensors)
    main = kind.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    return tensor_bytes((source.parameters,), T[main])
