"""Exports for the Python world: a peft adapter, and the merged model as safetensors with its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from genius_lite.recipe import Prefix
from genius_lite.rundir.folder import write_text
from genius_lite.weights.adapter import read_factors
from genius_lite.weights.importing import Base

_OF_THE_MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json")


def write_peft(base: Base, adapter: Path, out: Path) -> None:
    """The adapter as peft reads it, and the tokenizer; its base is named by where the user found it."""
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.origin.removeprefix(Prefix.HUB)
    write_text(out / "adapter_config.json", json.dumps(config, indent=2))
    _write_tokenizer(base, out)


def write_safetensors(base: Base, adapter: Path | None, out: Path) -> None:
    """Checkpoint + adapter in 16 bits, a file at a time, with config and tokenizer: what `from_pretrained` reads."""
    import torch
    from safetensors.torch import load_file, save_file

    factors, alpha, rank = read_factors(adapter) if adapter else ({}, 1.0, 1)
    for file in sorted(base.hf_checkpoint.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors.keys() & factors.keys():
            b, a = (torch.from_numpy(factor) for factor in factors[name])
            tensors[name] = (tensors[name].float() + (alpha / rank) * (b @ a)).to(tensors[name].dtype)
        save_file(tensors, out / file.name, metadata={"format": "pt"})
    for name in _OF_THE_MODEL:
        if (base.hf_checkpoint / name).exists():
            shutil.copyfile(base.hf_checkpoint / name, out / name)
    _write_tokenizer(base, out)


def _write_tokenizer(base: Base, out: Path) -> None:
    from transformers import AutoTokenizer

    path = base.gguf.path
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.chat_template = base.gguf.metadata.get("tokenizer.chat_template")
    tokenizer.save_pretrained(out)
