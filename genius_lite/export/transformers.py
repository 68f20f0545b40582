"""Exports for the Python world: a peft adapter, and the merged model as safetensors with its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from genius_lite.errors import UserError
from genius_lite.recipe import Prefix
from genius_lite.rundir.folder import write_text
from genius_lite.weights.adapter import read_factors
from genius_lite.weights.full_precision import load_weights
from genius_lite.weights.importing import Base


def write_peft(base: Base, adapter: Path, out: Path) -> None:
    """The adapter as peft reads it, and the tokenizer; its base is named by where the user found it."""
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.origin.removeprefix(Prefix.HUB)
    write_text(out / "adapter_config.json", json.dumps(config, indent=2))
    _write_tokenizer(base, out)


def write_safetensors(base: Base, adapter: Path | None, out: Path) -> None:
    """Checkpoint + adapter in 16 bits, with config and tokenizer: what `from_pretrained` reads."""
    merged_model(base, adapter).save_pretrained(out)
    _write_tokenizer(base, out)


def merged_model(base: Base, adapter: Path | None) -> Any:
    """Load the checkpoint in 16 bits and add the adapter, whose names are those of the model and not of its files.

    Raises:
        UserError: the adapter is another model's.
    """
    import torch

    model = load_weights(base.hf_checkpoint)
    weights = dict(model.named_parameters())
    factors, alpha, rank = read_factors(adapter) if adapter else ({}, 1.0, 1)
    for name, (b, a) in factors.items():
        if name not in weights:
            raise UserError(f"{adapter} does not belong to {base.hf_checkpoint}, which has no {name}")
        update = (alpha / rank) * (torch.from_numpy(b) @ torch.from_numpy(a))
        weights[name].data = (weights[name].float() + update).to(weights[name].dtype)
    return model


def _write_tokenizer(base: Base, out: Path) -> None:
    from transformers import AutoTokenizer

    path = base.gguf.path
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.chat_template = base.gguf.metadata.get("tokenizer.chat_template")
    tokenizer.save_pretrained(out)
