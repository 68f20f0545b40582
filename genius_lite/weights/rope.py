"""Rotary frequencies as llama.cpp reads them from a GGUF, said in the words of transformers' config."""

from __future__ import annotations

from typing import Any

import numpy as np

from genius_lite.errors import UserError
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import shown
from genius_lite.weights.supported import needs_weights

DIVISORS = "rope_freqs.weight"
BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of frequencies: what each is divided by, for all texts, or for long and for short ones."""
# Every Llama with such a tensor was made with these (its config.json); only `factor` is not the same for all.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_BASE = 10000.0  # llama.cpp's, where a file names none
_TOLERANCE = 1e-3  # of a divisor
_UNSCALED = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")


def scale_frequencies(source: GGUF, config: Any) -> None:
    """Set the config's `rope_parameters` to what llama.cpp reads; transformers reads little from a GGUF, or nothing.

    Llama 3.1 to 3.3 keep their frequencies as a tensor that each is divided by, long-context variants of other models
    as metadata. Short texts hardly show the difference, so that a parity check on them may pass.

    Where parameters are by kind of layer, those of full attention are scaled: llama.cpp leaves layers with a window
    alone, with Gemma 3 and wherever a family says nothing else (`rope_freq_scale_train_swa`).

    Raises:
        UserError: the frequencies are scaled in a way that the learner cannot follow.
    """
    every = getattr(config, "rope_parameters", None) or {}
    stated = every.get("full_attention", every)
    if "rope_theta" not in stated:
        return
    found: dict[str, Any] = {**{key: stated[key] for key in _UNSCALED if key in stated}, "rope_type": "default"}
    found["rope_theta"] = rope_base(source)
    if "partial_rotary_factor" in found:
        width = _head_width(config)
        found["partial_rotary_factor"] = source.own("rope.dimension_count", width) / width
    scaled = {**found, **_scaling(source, config, found["rope_theta"])}
    if "full_attention" in every:
        sliding = {**every["sliding_attention"], "rope_theta": rope_base(source, "freq_base_swa")}
        scaled = {**every, "full_attention": scaled, "sliding_attention": sliding}
    config.rope_parameters = scaled


def rope_base(source: GGUF, key: str = "freq_base") -> float:
    """Return the base of the rotary frequencies as llama.cpp reads it."""
    found = source.metadata.get(f"{source.architecture}.rope.{key}")
    return found if isinstance(found, float) else _BASE  # of another type llama.cpp takes none


def _scaling(source: GGUF, config: Any, base: float) -> dict[str, Any]:
    """Return what is to be added to a config's `rope_parameters`; nothing where nothing is scaled."""
    tensors = source.by_name
    own = f"{source.architecture}.rope"
    said = {key.removeprefix(f"{own}.scaling."): value for key, value in source.metadata.items()}
    kind = said.get("type")
    factor = said.get("factor", source.metadata.get(f"{own}.scale_linear"))  # its name in older files
    original = said.get("original_context_length") or source.metadata[f"{source.architecture}.context_length"]
    if DIVISORS in tensors:
        return _llama3(source, config, base, source.dequantized(tensors[DIVISORS]).ravel())
    if tables := [source.dequantized(tensors[name]).tolist() for name in BY_LENGTH if name in tensors]:
        if source.architecture != "phi3" or len(tables) != len(BY_LENGTH) or factor:
            raise _unknown_scaling(source, "by tables for short and for long texts")
        config.original_max_position_embeddings = original
        longrope = {"rope_type": "longrope", "attention_factor": float(said.get("attn_factor", 1))}
        return {**longrope, "long_factor": tables[0], "short_factor": tables[1]}
    if (attention := said.get("attn_factor", 1)) != 1:
        raise _unknown_scaling(source, f"with attention scaled by {shown(str(attention))}")
    if kind == "none" or not factor:  # llama.cpp takes 0 for 1, and no type for linear
        return {}
    if source.architecture == "phi3" or kind not in ("linear", "yarn", None):
        raise _unknown_scaling(source, f"as {shown(str(kind))}")
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    return {"rope_type": "linear", "factor": float(factor)}


def _head_width(config: Any) -> int:
    # A header of no heads is refused with the model that it describes.
    return getattr(config, "head_dim", None) or config.hidden_size // max(1, config.num_attention_heads)


def _llama3(source: GGUF, config: Any, base: float, divisors: np.ndarray) -> dict[str, Any]:
    """Find parameters of transformers' `llama3` that give these divisors, one for each pair of axes."""
    pairs = len(divisors)
    if 2 * pairs == _head_width(config):
        factor = float(divisors.max())
        wavelengths = 2 * np.pi * base ** (np.arange(pairs) / pairs)
        low, high, length = _LLAMA3.values()
        smooth = np.clip((length / wavelengths - low) / (high - low), 0, 1)
        with np.errstate(all="ignore"):  # a stranger's file may hold anything
            apart = np.abs(divisors * ((1 - smooth) / factor + smooth) - 1).max()
        if apart <= _TOLERANCE:
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise _unknown_scaling(source, "by a table that is not Llama 3's")


def _unknown_scaling(source: GGUF, how: str) -> UserError:
    return needs_weights(source.path, f"its rotary frequencies are scaled {how}, which is not read from a GGUF")
