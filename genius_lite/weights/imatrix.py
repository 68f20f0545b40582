"""The importance matrix: from the learner's activations to llama.cpp's quantizer, and to a file for its tools."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from genius_lite.weights.mapping import TensorMap

Matrix = dict[str, np.ndarray]
"""GGUF tensor name -> mean squared input of each column, float32."""


def load(path: Path, tensor_map: TensorMap) -> Matrix:
    """The importance that the learner gathered, by the GGUF's names. Row order does not matter: columns are meant."""
    sums = load_file(path)
    tokens = int(sums.pop("tokens"))
    return {gguf_name: sums[name] / tokens for gguf_name, (name, _) in tensor_map.tensors.items() if name in sums}


def as_c_array(matrix: Matrix) -> tuple[Any, list[np.ndarray]]:
    """`llama_model_imatrix_data[]` for `llama_model_quantize_params.imatrix`, and what must outlive its use."""
    kind = llama_cpp.llama_model_imatrix_data
    array = (kind * (len(matrix) + 1))()  # an entry without a name ends it
    kept = []
    for entry, (name, values) in zip(array, matrix.items(), strict=False):
        data = np.ascontiguousarray(values, dtype=np.float32)
        entry.name = name.encode()
        entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = data.size
        kept.append(data)
    return array, kept


def write(matrix: Matrix, tokens: int, dataset: str, path: Path) -> None:
    """A GGUF imatrix file that `llama-quantize --imatrix` reads (llama.cpp, tools/imatrix)."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", tokens)
    for name, values in sorted(matrix.items()):
        writer.add_tensor(f"{name}.in_sum2", (values * tokens).astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
