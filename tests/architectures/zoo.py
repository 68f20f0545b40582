"""Tiny random models of the architectures that people run, made by transformers as their makers publish them.

A model is one line of `ARCHITECTURES`. What transformers does not read from a GGUF but takes from its config's defaults
(a head's width, a query's scale, a window) is left at the default here, as it is in the models themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.architectures.published import add_prediction_block, write_tokenizer
from tests.support.models import VOCABULARY

WINDOW = 64  # tokens of a sliding window, where the file has it
ORIGINAL_CONTEXT = 64  # tokens, before a rotary scaling by length
TEXT = [(7 * i * i + 11 * i + i // 3) % 256 for i in range(300)]
"""Longer than any window and any original context here."""

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1.5e5,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}
_GEMMA3_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
_QWEN35 = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1]},
    "tie_word_embeddings": True,
}
_STABLE_CODE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
_EYES = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 32}


@dataclass(frozen=True)
class Architecture:
    """A family, as transformers names it, and how its tiny model differs from the usual shape.

    `gguf` is llama.cpp's name. `published` replaces what transformers would write into config.json, where the
    converter knows only the maker's words; `as_llama_cpp` what transformers would make of it and llama.cpp does not.
    `predicts_more`: with a block for one more token, which transformers skips. `sees` is the config of a vision tower,
    if the makers publish the model with one, which its GGUF leaves out; the rest is that of `text_config` then.
    """

    gguf: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    as_llama_cpp: dict[str, Any] = field(default_factory=dict)
    predicts_more: bool = False
    sees: dict[str, Any] = field(default_factory=dict)

    def build(self, folder: Path) -> None:
        """Write the model, its config and tokenizer, as a repository on the hub has them.

        Its weights fit into 16 bits and stand in 32: the converter adds one to norms in the type that it finds.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        config = AutoConfig.for_model(self.model_type, **self._described(_SHAPE | self.config, self.sees))
        torch.manual_seed(7)
        model = (AutoModelForImageTextToText if self.sees else AutoModelForCausalLM).from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # norms, biases and gates, which begin as all ones or zeros
                    parameter += 0.2 * torch.randn(parameter.shape)
                elif "conv" in name:
                    parameter.normal_()
        model.half().float().save_pretrained(folder)
        path = folder / "config.json"
        written = json.loads(path.read_text())
        text = written["text_config"] if self.sees else written
        path.write_text(json.dumps(written | self._described(text | self.published, written.get("vision_config"))))
        if self.predicts_more:
            add_prediction_block(folder / "model.safetensors", _SHAPE["hidden_size"])
        write_tokenizer(folder)

    def _described(self, text: dict[str, Any], vision: dict[str, Any] | None) -> dict[str, Any]:
        return {"text_config": text, "vision_config": vision} if self.sees else text


ARCHITECTURES = {
    "llama": Architecture(
        "llama", "llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True, "max_position_embeddings": 131072}
    ),
    "mistral": Architecture(
        "llama", "mistral", {"head_dim": 32, "sliding_window": WINDOW}, as_llama_cpp={"sliding_window": None}
    ),
    "qwen2": Architecture("qwen2", "qwen2"),
    "qwen2moe": Architecture(
        "qwen2moe",
        "qwen2_moe",
        {
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 160,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3": Architecture("qwen3", "qwen3", {"head_dim": 32}),
    "qwen3moe": Architecture(
        "qwen3moe",
        "qwen3_moe",
        {
            "head_dim": 32,
            "moe_intermediate_size": 192,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "qwen35": Architecture("qwen35", "qwen3_5_text", _QWEN35, {"mtp_num_hidden_layers": 1}, predicts_more=True),
    "qwen35-vision": Architecture(
        "qwen35",
        "qwen3_5",
        _QWEN35,
        {"mtp_num_hidden_layers": 1},
        predicts_more=True,
        sees=_EYES | {"depth": 1, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 16},
    ),
    "qwen35moe": Architecture(
        "qwen35moe",
        "qwen3_5_moe_text",
        _QWEN35
        | {
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 160,
            "num_experts": 4,
            "num_experts_per_tok": 4,  # all of them, as near ties leave the choice to chance
        },
        {"mtp_num_hidden_layers": 1},
        predicts_more=True,
    ),
    "gemma2": Architecture(
        "gemma2",
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "sliding_window": WINDOW,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": Architecture(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-vision": Architecture(
        "gemma3",
        "gemma3",
        {"head_dim": 256, "sliding_window": WINDOW, "num_hidden_layers": 6, "tie_word_embeddings": True},
        sees=_EYES | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
    ),
    "gemma3-scaled": Architecture(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 256,
            "sliding_window": WINDOW,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
            "rope_parameters": _GEMMA3_ROPE
            | {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
        },
    ),
    "gemma4": Architecture(
        "gemma4",
        "gemma4_text",
        {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "sliding_window": WINDOW,
            "head_dim": 32,
            "global_head_dim": 64,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Architecture(
        "phi3", "phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": ORIGINAL_CONTEXT}
    ),
    "smollm3": Architecture("smollm3", "smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "granite": Architecture("granite", "granite", _GRANITE),
    "granite4": Architecture(
        "granite",
        "granitemoehybrid",
        _GRANITE
        | _MAMBA2
        | {
            "layer_types": ["full_attention"] * 2,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
        },
        {"layer_types": ["attention"] * 2},
    ),
    "granitehybrid": Architecture(
        "granitehybrid",
        "granitemoehybrid",
        _GRANITE
        | _MAMBA2
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 96,
            "position_embedding_type": None,
        },
        {"layer_types": ["mamba", "attention"]},
    ),
    "lfm2": Architecture("lfm2", "lfm2", {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True}),
    "gpt-oss": Architecture(
        "gpt-oss",
        "gpt_oss",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
            "rope_parameters": _YARN | {"truncate": False},
        },
        as_llama_cpp={"rope_parameters": _YARN | {"truncate": True}},  # llama.cpp always rounds YaRN's bounds
    ),
    "olmo2": Architecture("olmo2", "olmo2"),
    "olmo3": Architecture("olmo2", "olmo3", {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    "starcoder2": Architecture(
        "starcoder2",
        "starcoder2",
        {"sliding_window": WINDOW, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        as_llama_cpp={"sliding_window": None},
    ),
    "stablelm": Architecture(
        "stablelm",
        "stablelm",
        {"use_qkv_bias": True, "rope_parameters": _STABLE_CODE},
        as_llama_cpp={"rope_parameters": _STABLE_CODE | {"rope_theta": 1e4}},  # whose converter leaves it out
    ),
    "falcon": Architecture("falcon", "falcon", {"tie_word_embeddings": True}, {"num_kv_heads": 1}),
    "nemotron": Architecture("nemotron", "nemotron", {"head_dim": 16}),
    "minimax-m2": Architecture(
        "minimax-m2",
        "minimax_m2",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        },
        {"rotary_dim": 16, "scoring_func": "sigmoid"},
    ),
}

RECURRENT = {"qwen35", "qwen35-vision", "qwen35moe", "granitehybrid", "lfm2"}
"""What a token leaves behind cannot be told apart by branches, nor taken back."""
