"""Import a GGUF once, to a 16-bit master that the learner can load in any precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genius_lite.errors import UserError
from genius_lite.weights import mapping
from genius_lite.weights.gguf_file import GGUF

MAP_FILE = "tensor_map.json"
SOURCE_FILE = "source.json"
# What transformers lists beside causal language models: encoder-decoders, and two sections of its own tables.
_NOT_CAUSAL = {"t5", "umt5", "general", "tokenizer"}


def check_supported(source: GGUF) -> None:
    """Refuse, before anything is made, what the learner could not import.

    Raises:
        UserError: transformers does not read this architecture, or the file is one shard of several.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    causal = set(GGUF_SUPPORTED_ARCHITECTURES) - _NOT_CAUSAL
    if source.architecture not in causal:
        raise UserError(
            f"{source.path}: architecture `{source.architecture}` cannot be trained; "
            f"supported are {', '.join(sorted(causal))}"
        )
    if source.metadata.get("split.count", 1) > 1:
        raise UserError(f"{source.path}: a shard of several; join them with llama-gguf-split --merge first")


def import_master(source: GGUF, folder: Path, advance: Callable[[int], None]) -> None:
    """Write the master to `folder`: safetensors in 16 bit, its config, and the tensor map.

    The weights are dequantized by transformers (`from_pretrained(gguf_file=...)`).

    Args:
        advance: called with 1 after each of `source.tensors` that is mapped.

    Raises:
        UserError: the imported model is not the GGUF's.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        source.path.parent,
        gguf_file=source.path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float16,
    )
    # transformers still marks the model as quantized, and would refuse to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    weights = model.state_dict()
    names = mapping.learner_names(source, [n for n in weights if n.endswith(".weight") and weights[n].ndim == 2])
    found = mapping.match(source, names, lambda name: weights[name].numpy().view(np.uint16), advance)
    found.save(folder / MAP_FILE)
    (folder / SOURCE_FILE).write_text(json.dumps({"path": str(source.path), "sha256": sha256(source.path)}))


def sha256(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
