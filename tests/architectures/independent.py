"""What llama.cpp and transformers say of a text, with nothing of genius-lite between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from tests.architectures.zoo import TEXT


def opened(path: Path) -> llama_cpp.Llama:
    """Open a model with its cache in fp32 too."""
    fp32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, type_k=fp32, type_v=fp32, verbose=False)


def by_llama_cpp(model: llama_cpp.Llama) -> np.ndarray:
    """Return the log-probability of each token of `TEXT` but the first, nats."""
    model.eval(TEXT)
    return _logps(torch.from_numpy(np.array(model.scores[: len(TEXT)])))


def by_transformers(folder: Path, replaced: dict[str, Any]) -> np.ndarray:
    """Return the same by transformers, with some of the config replaced."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **replaced)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    with torch.no_grad():
        return _logps(model(torch.tensor([TEXT])).logits[0])


def _logps(logits_TV: torch.Tensor) -> np.ndarray:
    return logits_TV.double().log_softmax(-1)[range(len(TEXT) - 1), TEXT[1:]].numpy()
