"""The importance matrix as llama.cpp's own quantizer takes it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from genius_lite.weights.adapter import Matrix


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
