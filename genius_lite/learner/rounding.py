"""What 16 bits would hide: the adapter's product is rounded once with the base's, and a pass can be made in fp32.

An adapter adds little to a large product. Where the product has been rounded before, whatever is below half a unit of
its last place is gone again, always, so that the learner sees a part of what it has learned. Where the sum is rounded
once, it errs as often to one side as to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from genius_lite.learner.head import Int8Embedding


def round_once(policy: Any) -> None:
    """Have every adapted matrix of a peft model add both products before it rounds them, and compute all in one type.

    That the adapter's own matrices are in fp32 is no reason to raise the input to it, which peft does by itself, and
    autograd would keep that copy.
    """
    from peft.tuners.lora import LoraLayer

    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
            module.forward = partial(_adapted, module, module.forward)  # pyright: ignore


def _adapted(layer: Any, plain: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute what a layer gives of x, of any shape with the width last."""
    parts = adapter_of(layer)
    if parts is None:
        return plain(x)
    result: Any = _Adapted.apply(in_computing_type(x).flatten(0, -2), *parts)
    return result.view(*x.shape[:-1], result.shape[-1])


def adapter_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor, Any, float] | None:
    """Return A, B, the layer under the adapter and the scale; None where nothing is added to a plain product here."""
    base = getattr(layer, "base_layer", None)
    if type(base) not in (nn.Linear, Linear4bit) or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, base, layer.scaling[name]


def in_computing_type(x: torch.Tensor) -> torch.Tensor:
    """Cast to autocast's type where that is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _Adapted(torch.autograd.Function):
    """The adapted product of x, see `adapted_product`; autograd keeps nothing but x and `x @ A.T`."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: torch.Tensor, a_RD: torch.Tensor, b_OR: torch.Tensor, base: Any, scale: float
    ) -> torch.Tensor:
        result_TO, *kept = adapted_product(x_TD, a_RD, b_OR, base, scale)
        ctx.save_for_backward(x_TD, *kept)
        ctx.base, ctx.scale = base, scale
        return result_TO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TD, low_TR, a_RD, b_OR = ctx.saved_tensors
        parts = (low_TR, a_RD, b_OR, ctx.base, ctx.scale)
        found = adapted_gradients(gradients[0], x_TD, *parts, wanted=ctx.needs_input_grad[0])
        return *found, None, None


def adapted_product(
    x_TD: torch.Tensor, a_RD: torch.Tensor, b_OR: torch.Tensor, base: Any, scale: float
) -> tuple[torch.Tensor, ...]:
    """Compute `x @ W.T + scale * (x @ A.T) @ B.T + bias`, the first product summed up in fp32 onto the second.

    W is frozen, and dequantized for each product. In one piece this takes fewer walks through memory.

    Returns:
        It, and what its gradients need beside x: `x @ A.T`, and A and `scale * B` in the type of x.
    """
    a_RD, b_OR = a_RD.to(x_TD.dtype), (scale * b_OR).to(x_TD.dtype)
    low_TR = x_TD @ a_RD.T
    result_TO = (low_TR @ b_OR.T).addmm_(x_TD, _weight(base, x_TD.dtype).T)
    if base.bias is not None:
        result_TO += base.bias.to(x_TD.dtype)
    return result_TO, low_TR, a_RD, b_OR


def adapted_gradients(
    gradient_TO: torch.Tensor,
    x_TD: torch.Tensor,
    low_TR: torch.Tensor,
    a_RD: torch.Tensor,
    b_OR: torch.Tensor,
    base: Any,
    scale: float,
    wanted: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Compute gradients of x, if it is wanted, of A and of B; see `adapted_product`."""
    to_low_TR = gradient_TO @ b_OR
    to_a_RD, to_b_OR = (to_low_TR.T @ x_TD).float(), scale * (gradient_TO.T @ low_TR).float()
    to_x_TD = (to_low_TR @ a_RD).addmm_(gradient_TO, _weight(base, gradient_TO.dtype)) if wanted else None
    return to_x_TD, to_a_RD, to_b_OR


def _weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(base, Linear4bit):
        return base.weight.to(dtype)
    state = getattr(base.weight, "quant_state", None) or base.quant_state
    return dequantize_4bit(base.weight.data, state).to(dtype)


@contextmanager
def widened(base: Any) -> Iterator[None]:
    """Compute passes through a transformers model in fp32 inside, with the values that its weights have.

    A layer's weights are widened while the layer computes, so that one layer at a time takes the memory of fp32; 4-bit
    ones are dequantized as always. For passes without gradients: what these would keep is narrow again by then.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def widen(module: nn.Module, *_: Any) -> None:
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                kept.append((tensor, tensor.data))
                tensor.data = tensor.data.float()

    def narrow(*_: Any) -> None:
        for tensor, data in kept:
            tensor.data = data
        kept.clear()

    quantized = [(m, m.compute_dtype) for m in base.modules() if isinstance(m, Linear4bit)]
    hooks = []
    for unit in _units(base.get_decoder(), base._no_split_modules):
        # Rows are looked up: nothing is lost before they are widened.
        if isinstance(unit, nn.Embedding | Int8Embedding):
            hooks.append(unit.register_forward_hook(lambda module, inputs, rows: rows.float()))
        else:
            hooks.append(unit.register_forward_pre_hook(widen))
            hooks.append(unit.register_forward_hook(narrow, prepend=True))  # before FSDP takes the weights away
    try:
        for module, _ in quantized:
            module.compute_dtype = torch.float32
        yield
    finally:
        narrow()
        for module, dtype in quantized:
            module.compute_dtype = dtype
        for hook in hooks:
            hook.remove()


def _units(module: nn.Module, layers: set[str]) -> Iterator[nn.Module]:
    """Yield the layers, and what has weights outside of them."""
    if type(module).__name__ in layers or not any(True for _ in module.children()):
        yield module
    else:
        for child in module.children():
            yield from _units(child, layers)
