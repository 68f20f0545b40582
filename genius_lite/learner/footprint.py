"""What training takes in memory and passes, as arithmetic: no model and no torch is needed to know. Bytes, pairs."""

from __future__ import annotations

SLICE_BYTES = 48_000_000
"""Of the head's logits in fp32, and of its rows, that are in memory at once."""

MERGED_ON_CPU = 512
"""Tokens of a pass over several queries: enough for a CPU's products, and more only makes attention across trees."""

ACTIVATION_SHARE = 0.4
"""Of the free memory that activations may take before they are computed twice instead of kept."""

SCORED_PAIRS = 64
"""Of which the final margin is taken, at most: in fp32, with the adapter, and without unless training was in fp32."""

HELD = 2.2
"""What the process holds for each byte that autograd keeps: intermediate results pass, and malloc keeps their place.

It grows while packs of other sizes follow. In bf16, of packs of up to 1,507 tokens, after four updates and after eight:
1.6 and 1.8 (Qwen2.5-0.5B). After four packs of 512 tokens: 1.9 in NF4 and 1.9 in fp32 (SmolLM2).
"""

# What autograd keeps of a token in one layer: bytes for each of its `width` numbers, and for each of the MLP's `inner`
# ones. Counted by torch's hooks for saved tensors, LoRA on all matrices (SmolLM2-135M, Qwen2.5-0.5B). bf16 is more than
# half of fp32: norms keep their input in fp32.
_KEPT = {"fp32": (33, 16), "bf16": (21, 8)}
_SIZE = {"fp32": 4, "bf16": 2}


def kept_bytes(tokens: int, layers: int, width: int, inner: int, in_bf16: bool, *, checkpointing: bool = False) -> int:
    """Return what the forward pass over so many tokens keeps for the backward pass.

    Args:
        in_bf16: what is computed in, else fp32; NF4 weights are dequantized to it.
        checkpointing: activations are computed twice: only each layer's input is kept, and all of one layer.
    """
    kind = "bf16" if in_bf16 else "fp32"
    per_width, per_inner = _KEPT[kind]
    layer = tokens * (per_width * width + per_inner * inner)
    return tokens * layers * width * _SIZE[kind] + layer if checkpointing else layers * layer
