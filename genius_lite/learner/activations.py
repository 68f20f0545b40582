"""Which activations are kept for the backward pass, and which are computed again in it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from genius_lite.learner.footprint import layers_twice
from genius_lite.learner.model import compute_dtype


def inner_width(config: Any) -> int:
    """Count the hidden units of an MLP that a token goes through: of experts those that it is sent to.

    Gemma 3n's config has a number for each layer, of which the largest counts.
    """

    def first(*names: str) -> Any:
        return next((value for name in names if (value := getattr(config, name, None))), 0)

    inner = first("intermediate_size") or 4 * config.hidden_size
    inner = max(inner) if isinstance(inner, list | tuple) else inner
    used = first("num_experts_per_tok", "num_experts_per_token", "experts_per_token")
    if not used:
        return inner
    each = first("moe_intermediate_size") or inner
    # One expert, or some, that every token goes through.
    shared = first("shared_expert_intermediate_size", "shared_intermediate_size") or first("n_shared_experts") * each
    return used * each + shared


class Activations:
    """The activations of passes: of the last layers they are kept, as far as memory allows; see `layers_twice`.

    `most` is of how many layers they are computed twice in the `largest` pass, of so many tokens.
    """

    def __init__(self, policy: Any, twice: bool | Literal["auto"], free: int, largest: int):
        base = policy.get_base_model()
        config = base.config.get_text_config()
        self.layers = config.num_hidden_layers
        in_bf16 = compute_dtype(base) == torch.bfloat16
        widths = config.hidden_size, inner_width(config)
        self._twice_for = partial(layers_twice, twice, free, self.layers, *widths, in_bf16)
        self.most = self._twice_for(largest)
        if self.most:
            base.activation_checkpointing_enable({"use_reentrant": False})
        self._switches: list[Any] = [m for m in base.modules() if getattr(m, "gradient_checkpointing", False)]

    def keep_for(self, tokens: int) -> None:
        """Have the next passes, of up to so many tokens, keep what fits into memory."""
        count, passed = self._twice_for(tokens), 0
        for module in self._switches:
            # A family that has no layers of this kind computes all of them twice, or none.
            module.gradient_checkpointing = passed < count
            passed += isinstance(module, GradientCheckpointingLayer)
