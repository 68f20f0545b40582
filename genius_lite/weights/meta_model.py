"""The model that transformers builds from a GGUF's header, without weights: it must be the one whose weights are there.

transformers fills in at random what a file lacks, and takes the memory for it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from genius_lite.errors import UserError
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import broken, shown
from genius_lite.weights.mapping import name_map
from genius_lite.weights.untrusted import EMBEDDINGS

_KEPT = ("general.architecture", "general.name", "general.alignment")
_TOKENIZER = "tokenizer.ggml."
_LONGEST_ARRAY, _LONGEST_TEXT = 4096, 4096  # layers and characters; nothing of the shape is longer
_SLACK = 1.01  # of the weights: a family may have some small ones that are no tensors of a GGUF
_DIVISORS = "rope_freqs.weight"
_BY_LENGTH = ("rope_factors_long.weight", "rope_factors_short.weight")
# Every Llama with such a tensor was made with these (its config.json); only `factor` is not the same for all.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOLERANCE = 1e-3  # of a divisor


def write_for_transformers(source: GGUF, out: Path) -> None:
    """Write the model's tensors with what describes its shape and special tokens, and no vocabulary.

    transformers wants one file. It parses a vocabulary of 150 thousand tokens three times, which takes several seconds
    and some hundred MB each time, and uses no more than its size.
    """
    own = f"{source.architecture}."
    tokens = next(t.shape[0] for t in source.tensors if t.name == EMBEDDINGS)
    replaced = {} if _counts_texts(source.architecture) else {f"{own}vocab_size": tokens}

    def wanted(key: str) -> bool:
        array, value = source.array(key), source.metadata[key]
        if key.startswith(_TOKENIZER):
            return 0 <= value < tokens if key.endswith("_token_id") and type(value) is int else not replaced
        short = array[1] <= _LONGEST_ARRAY if array else not isinstance(value, str) or len(value) <= _LONGEST_TEXT
        return short and key not in replaced and (key in _KEPT or key.startswith(own))

    gguf_file.write(out, source.keeping(wanted), source.tensors, source.raw_blocks, replaced)


def _counts_texts(architecture: str) -> bool:
    """Say whether transformers takes the size of the vocabulary from its texts alone."""
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    known = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    return architecture in GGUF_CONFIG_ARCHS or "vocab_size" not in known[architecture]


def read_config(source: GGUF, copy: Path) -> Any:
    """Read the config that transformers makes of the header.

    Args:
        copy: of `source`, as `write_for_transformers` made it.

    Raises:
        UserError: it wants other types; rotary frequencies are scaled in an unknown way; a tensor has another size than
            the header says; or the model would have more weights than the file.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(copy.parent, gguf_file=copy.name, trust_remote_code=False)
    except StrictDataclassError as e:
        reason = brief(str(e.__cause__ or e), 200)
        raise UserError(f"{source.path}: transformers cannot read its header: {reason}") from None
    _scale_frequencies(source, config)
    _check_meta_model(source, config)
    return config


def _check_meta_model(source: GGUF, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    names = name_map(source)
    shapes, needed = {t.name: t.shape for t in source.tensors}, 0
    for name, parameter in model.named_parameters():
        needed += parameter.numel()
        stem, _, suffix = name.rpartition(".")
        shape = shapes.get(own := f"{names.get_name(stem)}.{suffix}", tuple(parameter.shape))
        # An axis of one may be left out in the file.
        if math.prod(shape) != parameter.numel() or len(shape) > parameter.ndim:
            asked = f"and the header asks for {list(parameter.shape)}"
            raise broken(source.path, f"{shown(own)} is {list(shape)}, {asked}")
    if needed > _SLACK * source.parameters:
        held = f"{needed} weights, and it holds {source.parameters}"
        raise broken(source.path, f"its header describes a model of {held}")


def _scale_frequencies(source: GGUF, config: Any) -> None:
    """Set the config's `rope_parameters` to what llama.cpp reads; transformers reads only the base from a GGUF.

    Llama 3.1 to 3.3 keep their frequencies as a tensor that each is divided by, long-context variants of other models
    as metadata. Short texts hardly show the difference, so that a parity check on them may pass.

    Args:
        config: what transformers made of the header. Where its parameters are by kind of layer, those of full attention
            are scaled: llama.cpp leaves layers with a window alone, with Gemma 3 and wherever a family says nothing
            else (`rope_freq_scale_train_swa`).

    Raises:
        UserError: the frequencies are scaled in a way that the learner cannot follow.
    """
    every = getattr(config, "rope_parameters", None) or {}
    found = every.get("full_attention", every)
    if "rope_theta" not in found or found.get("rope_type", "default") != "default":
        return
    tensors = {tensor.name: tensor for tensor in source.tensors}
    own = f"{source.architecture}.rope"
    kind, factor = source.metadata.get(f"{own}.scaling.type"), source.metadata.get(f"{own}.scaling.factor")
    if factor is None:
        factor = source.metadata.get(f"{own}.scale_linear")  # its name in older files, which llama.cpp reads as well
    if _DIVISORS in tensors:
        scaled = _llama3(source, config, found["rope_theta"], source.dequantized(tensors[_DIVISORS]).ravel())
    elif any(name in tensors for name in _BY_LENGTH):
        raise _unknown_scaling(source, "by tables for short and for long texts")
    elif kind == "none" or not factor:  # llama.cpp takes 0 for 1, and no type for linear
        return
    elif kind in ("linear", None):
        scaled = {"rope_type": "linear", "factor": float(factor)}
    else:
        raise _unknown_scaling(source, f"as {shown(str(kind))}")
    scaled = {**found, **scaled}
    config.rope_parameters = scaled if found is every else {**every, "full_attention": scaled}


def _llama3(source: GGUF, config: Any, base: float, divisors: np.ndarray) -> dict[str, Any]:
    """Find parameters of transformers' `llama3` that give these divisors, one for each pair of axes."""
    pairs = len(divisors)
    if 2 * pairs == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads):
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
    return UserError(
        f"{source.path}: its rotary frequencies are scaled {how}, which the learner cannot follow; use another model"
    )


def check_complete(path: Path, model: Any, missing: set[str]) -> None:
    """Refuse a model of which transformers had to invent weights.

    Args:
        missing: names that it found nothing for.

    Raises:
        UserError: one of them is a weight.
    """
    if invented := sorted(missing & {name for name, _ in model.named_parameters()}):
        more = f" and {len(invented) - 1} others" * (len(invented) > 1)
        raise UserError(f"{path}: it has no weights for {shown(invented[0])}{more}")
