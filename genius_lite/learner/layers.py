"""Norms and gated layers that keep less for the backward pass, and walk through memory less often.

As transformers writes them, a norm keeps its input in fp32, and `down(silu(gate) * up)` keeps four matrices of the
inner width, where `gate` and `up` tell the others. What is computed is the same, rounding and all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from genius_lite.learner.rounding import adapted_gradients, adapted_product, adapter_of, in_computing_type


def keep_less(base: Any) -> None:
    """Have the norms and gated layers of a transformers model keep less, where they are computed as Llama's are.

    A hundred families have the very lines of Llama's in classes of their own.
    """
    for module in base.get_decoder().modules():
        if _computes_as(module, LlamaRMSNorm):
            module.forward = partial(_normalize, module)
        elif _computes_as(module, LlamaMLP) and isinstance(module.act_fn, nn.SiLU | SiLUActivation):
            module.forward = partial(_feed, module)


def _computes_as(module: nn.Module, other: type[nn.Module]) -> bool:
    """Say whether a module's forward pass has the same code as another class's."""
    ours, theirs = getattr(type(module).forward, "__code__", None), other.forward.__code__
    return all(getattr(ours, part, None) == getattr(theirs, part) for part in ("co_code", "co_names", "co_consts"))


def _normalize(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return _Normalized.apply(x, norm)  # pyright: ignore[reportReturnType]


def _feed(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    parts = adapter_of(mlp.down_proj)
    if parts is None:
        return mlp.down_proj(silu(gate) * up)
    result: Any = _GatedProduct.apply(*(in_computing_type(y).flatten(0, -2) for y in (gate, up)), *parts)
    return result.view(*x.shape[:-1], result.shape[-1])


class _Normalized(torch.autograd.Function):
    """`weight * (x * r)` with r = rsqrt(mean(x^2) + epsilon), in fp32 but for the last product; the weight is frozen.

    Of g, the gradient of n = x * r:  d x = r * (g - n * mean(g * n)).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: Any) -> torch.Tensor:
        wide = x.float()
        r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        ctx.save_for_backward(x, r)
        ctx.norm = norm
        return norm.weight * (wide * r).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, r = ctx.saved_tensors
        n, g = x.float() * r, (gradients[0] * ctx.norm.weight).to(x.dtype).float()
        mean = (g * n).mean(-1, keepdim=True)
        return n.mul_(mean).sub_(g).mul_(-r).to(x.dtype), None


class _GatedProduct(torch.autograd.Function):
    """The adapted product (see `adapted_product`) of x = silu(gate) * up, of which `gate` and `up` are kept."""

    @staticmethod
    def forward(ctx: Any, gate_TD: torch.Tensor, up_TD: torch.Tensor, *parts: Any) -> torch.Tensor:
        result_TO, *kept = adapted_product(silu(gate_TD).mul_(up_TD), *parts)
        ctx.save_for_backward(gate_TD, up_TD, *kept)
        ctx.base, ctx.scale = parts[2:]
        return result_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate_TD, up_TD, low_TR, a_RD, b_OR = ctx.saved_tensors
        gate_TD = gate_TD.detach().requires_grad_()
        with torch.enable_grad():
            active_TD = silu(gate_TD)
        x_TD = active_TD.detach() * up_TD
        to_x_TD, *to_adapter = adapted_gradients(gradients[0], x_TD, low_TR, a_RD, b_OR, ctx.base, ctx.scale)
        assert to_x_TD is not None
        (to_gate_TD,) = torch.autograd.grad(active_TD, gate_TD, torch.mul(to_x_TD, up_TD, out=x_TD))
        return to_gate_TD, to_x_TD.mul_(active_TD.detach()), *to_adapter, None, None
