"""Which families can be trained, as the tests assert it.

`python -m tests.architectures.table` prints the table of docs/models.md, and the README's.
"""

from __future__ import annotations

from tests.architectures.zoo import ARCHITECTURES

TAKEN = (
    *("llama", "mistral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen35", "qwen35-vision", "qwen35moe"),
    *("gemma2", "gemma3", "gemma3-scaled", "gemma3-vision", "phi3", "lfm2", "gpt-oss"),
    *("starcoder2", "stablelm", "falcon", "nemotron", "minimax-m2"),
)
"""With nothing but their GGUF."""

_UNREAD = "transformers does not read it from a GGUF"
REFUSED = {
    "gemma4": "transformers overlooks its embeddings for each layer and keys that layers share",
    "smollm3": _UNREAD,
    "granite": _UNREAD,
    "granite4": _UNREAD,
    "granitehybrid": _UNREAD,
    "olmo2": _UNREAD,
    "olmo3": _UNREAD,
}
"""With nothing but their GGUF, and why."""

WITH_WEIGHTS = tuple(ARCHITECTURES)
"""With `model.weights` beside it; the fixture `model` goes through them."""

_STACKS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
_BIASED_STACKS = [f"{name}{part}" for name in _STACKS for part in ("", "_bias")]
WITHOUT_ADAPTER = {
    "qwen2moe": [*_STACKS, "mlp.gate"],
    "qwen3moe": [*_STACKS, "mlp.gate"],
    "qwen35": ["linear_attn.conv1d"],
    "qwen35moe": ["linear_attn.conv1d", *_STACKS, "mlp.gate"],
    "gemma4": ["embed_tokens_per_layer", "per_layer_model_projection"],
    "granitehybrid": [
        "block_sparse_moe.experts.down_proj",
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.router",
        "mamba.conv1d",
        "mamba.out_proj",
    ],
    "lfm2": ["conv.conv"],
    "gpt-oss": [*_BIASED_STACKS, "mlp.router"],
    "minimax-m2": [*_STACKS, "mlp.gate"],
}
"""Of llama.cpp's families: stacks of experts and what chooses among them are no linear layers to transformers, nor are
convolutions and tables."""

FAMILIES = {
    "Llama 3, SmolLM2": ("llama",),
    "Mistral": ("mistral",),
    "Qwen2.5": ("qwen2",),
    "Qwen1.5-MoE, Qwen2-MoE": ("qwen2moe",),
    "Qwen3": ("qwen3",),
    "Qwen3-MoE": ("qwen3moe",),
    "Qwen3.5": ("qwen35", "qwen35-vision"),
    "Qwen3.5-MoE": ("qwen35moe",),
    "Gemma 2": ("gemma2",),
    "Gemma 3": ("gemma3", "gemma3-scaled", "gemma3-vision"),
    "Gemma 4": ("gemma4",),
    "Phi-3, Phi-4": ("phi3",),
    "SmolLM3": ("smollm3",),
    "Granite 3": ("granite",),
    "Granite 4": ("granite4", "granitehybrid"),
    "LFM2": ("lfm2",),
    "gpt-oss": ("gpt-oss",),
    "OLMo 2, OLMo 3": ("olmo2", "olmo3"),
    "StarCoder2": ("starcoder2",),
    "StableLM 2": ("stablelm",),
    "Falcon": ("falcon",),
    "Nemotron": ("nemotron",),
    "MiniMax-M2": ("minimax-m2",),
}
"""As people name them, and the tiny models that stand for each."""


def markdown() -> str:
    """Return the table; a family is taken if all models that stand for it are."""
    lines = [
        "| Family | llama.cpp's name | the GGUF alone | with `model.weights` | why not alone |",
        "|---|---|---|---|---|",
    ]
    for family, names in FAMILIES.items():
        spelled = ", ".join(dict.fromkeys(f"`{ARCHITECTURES[name].gguf}`" for name in names))
        alone, weights = (all(name in taken for name in names) for taken in (TAKEN, WITH_WEIGHTS))
        why = "; ".join(dict.fromkeys(REFUSED[name] for name in names if name in REFUSED))
        lines.append(f"| {family} | {spelled} | {_said(alone)} | {_said(weights)} | {why} |")
    return "\n".join(lines)


def summary() -> str:
    """Return the README's: the families by what they need."""
    alone = [family for family, names in FAMILIES.items() if all(name in TAKEN for name in names)]
    others = [family for family in FAMILIES if family not in alone]
    return "\n".join(
        [
            "| with | |",
            "|---|---|",
            f"| nothing but the GGUF | {', '.join(alone)} |",
            f"| the original weights beside it (`model.weights`) | {', '.join(others)}, and all of the above |",
        ]
    )


def _said(taken: bool) -> str:
    return "yes" if taken else "no"


if __name__ == "__main__":
    print(markdown(), summary(), sep="\n\n")
