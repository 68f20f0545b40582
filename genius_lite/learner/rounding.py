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
    """Have every adapted matrix of a peft model add both products before it rounds them, where it computes in bf16.

    That the adapter's own matrices are in fp32 is no reason to raise the input to it, which peft does by itself, and
    autograd would keep that copy.
    """
    from peft.tuners.lora import LoraLayer

    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
            module.forward = partial(_adapted, module, module.forward)  # pyright: ignore


def _adapted(layer: Any, plain: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute `x @ W.T + scale * (x @ A.T) @ B.T + bias`, x of any shape with the width last."""
    base = layer.base_layer
    in_bf16 = torch.is_autocast_enabled(x.device.type)
    if layer.disable_adapters or not in_bf16 or type(base) not in (nn.Linear, Linear4bit):
        return plain(x)
    (name,) = layer.active_adapters
    low = layer.lora_B[name](layer.lora_A[name](x)) * layer.scaling[name]
    x_TD = x.to(low.dtype).flatten(0, -2)
    result: Any = _Sum.apply(x_TD, low.flatten(0, -2), base)
    result = result.view(low.shape)
    return result if base.bias is None else result + base.bias.to(result.dtype)


class _Sum(torch.autograd.Function):
    """`x @ W.T + low`, summed up in fp32 and rounded once; W is frozen, and dequantized for each product."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, low_TO: torch.Tensor, base: Any) -> torch.Tensor:
        ctx.base = base
        return torch.addmm(low_TO, x_TD, _weight(base, x_TD.dtype).T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        (gradient_TO,) = gradients
        to_x = gradient_TO @ _weight(ctx.base, gradient_TO.dtype) if ctx.needs_input_grad[0] else None
        return to_x, gradient_TO, None


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
    for unit in _units(base.get_decoder(), set(base._no_split_modules or ())):
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
