"""Rotary frequencies as llama.cpp has them: transformers reads only their base from a GGUF.

Llama 3.1 to 3.3 keep theirs as a tensor that every frequency is divided by, long-context variants of other models as
metadata. Short texts hardly show the difference, so that a parity check on them may pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genius_lite.errors import UserError
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import shown

_DIVISORS = "rope_freqs.weight"
_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
# Every Llama with such a tensor was made with these (its config.json); only `factor` is not the same for all.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-3  # of a divisor


def scale_frequencies(source: GGUF, config: Any) -> None:
    """Set the config's `rope_parameters` to what the GGUF says beyond the base.

    Args:
        config: what transformers made of the header; left alone where it knows of more than one base for all layers.

    Raises:
        UserError: the frequencies are scaled in a way that the learner cannot follow.
    """
    found = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in found or found.get("rope_type", "default") != "default":
        return
    tensors = {tensor.name: tensor for tensor in source.tensors}
    kind, factor = (source.metadata.get(f"{source.architecture}.rope.scaling.{key}") for key in ("type", "factor"))
    if _DIVISORS in tensors:
        scaled = _llama3(source, config, source.dequantized(tensors[_DIVISORS]).ravel())
    elif any(name in tensors for name in _BY_LENGTH):
        raise _unknown(source, "by tables for short and for long texts")
    elif kind == "none" or not factor:  # llama.cpp takes 0 for 1, and no type for linear
        return
    elif kind in ("linear", None):
        scaled = {"rope_type": "linear", "factor": float(factor)}
    else:
        raise _unknown(source, f"as {shown(str(kind))}")
    config.rope_parameters = {**found, **scaled}


def _llama3(source: GGUF, config: Any, divisors: np.ndarray) -> dict[str, Any]:
    """Find parameters of transformers' `llama3` that give these divisors, one for each pair of axes."""
    pairs = len(divisors)
    if 2 * pairs == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads):
        base, factor = config.rope_parameters["rope_theta"], float(divisors.max())
        wavelengths = 2 * np.pi * base ** (np.arange(pairs) / pairs)
        low, high, length = _LLAMA3.values()
        smooth = np.clip((length / wavelengths - low) / (high - low), 0, 1)
        with np.errstate(all="ignore"):  # a stranger's file may hold anything
            apart = np.abs(divisors * ((1 - smooth) / factor + smooth) - 1).max()
        if apart <= _TOLERANCE:
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise _unknown(source, "by a table that is not Llama 3's")


def _unknown(source: GGUF, how: str) -> UserError:
    return UserError(
        f"{source.path}: its rotary frequencies are scaled {how}, which the learner cannot follow; use another model"
    )
