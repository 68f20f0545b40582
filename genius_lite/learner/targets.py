"""Which matrices get an adapter, and which have none."""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import nn

from genius_lite.errors import UserError

# They multiply by out_proj themselves, some by dt_proj too, past any adapter; peft refuses out_proj of some.
_MAMBA_KIND = {"bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h"}
# What Gemma 3n and 4 make embeddings for each layer with: llama.cpp applies no adapter to it at run time.
_OF_EMBEDDINGS = ".per_layer_model_projection"


def target_modules(base: nn.Module, wanted: list[str] | Literal["auto"] = "auto") -> list[str]:
    """List full names of the linear layers to adapt: those between the embeddings and the head, of what reads text.

    Raises:
        UserError: there is none, or a wanted name fits none of them.
    """
    kind = base.config.model_type  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    read = set(base.get_decoder().modules())  # pyright: ignore[reportCallIssue]
    left_out = (_OF_EMBEDDINGS, ".out_proj", ".dt_proj") if kind in _MAMBA_KIND else _OF_EMBEDDINGS
    linear = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and m in read]
    linear = [n for n in linear if not n.endswith(left_out)]
    if not linear:
        raise UserError(
            f"models of type `{kind}` have no linear layer that an adapter could be put on; use another model"
        )
    if wanted == "auto":
        return linear
    for name in wanted:
        if not any(n.endswith(f".{name}") for n in linear):
            known = ", ".join(sorted({n.rpartition(".")[2] for n in linear}))
            raise UserError(f"learner.targets: `{name}` is no layer that can be adapted; known are {known}")
    return [n for n in linear if n.endswith(tuple(f".{name}" for name in wanted))]


def without_adapter(policy: Any) -> list[str]:
    """List kinds of matrices between embeddings and head that have no adapter, as `mlp.experts.gate_up_proj`.

    Experts are stacked in one parameter by transformers 5, which is no linear layer.
    """
    base = policy.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    outside = {id(module.weight) for module in ends if hasattr(module, "weight")}
    read = list(base.get_decoder().named_parameters())
    adapted = {name.partition(".lora_")[0] for name, _ in read if ".lora_" in name}
    matrices = {
        name.removesuffix(".weight").removesuffix(".base_layer")
        for name, parameter in read
        if parameter.ndim > 1 and id(parameter) not in outside and ".lora_" not in name
    }
    return sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in matrices - adapted})
