"""What makers publish beside a model's weights: a config, a tokenizer, and at times a block that transformers skips."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.models import MERGED, SPECIAL, TEMPLATE, tokens


def add_prediction_block(path: Path, width: int) -> None:
    """Add a multi-token-prediction block, which is a layer like the last one between projections of its own."""
    weights = load_file(path)
    last = max(re.findall(r"^(.*\.layers\.(\d+)\.)", "\n".join(weights), re.MULTILINE), key=lambda at: int(at[1]))[0]
    block = {f"mtp.layers.0.{n.removeprefix(last)}": w.clone() for n, w in weights.items() if n.startswith(last)}
    norms = {
        f"mtp.{name}.weight": torch.zeros(width) for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    }
    fc = {"mtp.fc.weight": torch.ones(width, 2 * width)}
    save_file(weights | block | norms | fc, path, {"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(tokens())}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(MERGED)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, start, turn = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=turn, pad_token=end)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
