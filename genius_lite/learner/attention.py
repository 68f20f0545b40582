"""Attention on a CPU, tree by tree: tokens of a pass that belong to other trees are not even looked at.

It stands in for transformers' `sdpa` where a mask says which trees it is made of. It is computed in fp32: in bf16
torch's kernel takes twice as long, forward and backward (9 heads of 64, a tree of 100 tokens: 3 and 8 ms on one core).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward


def mark(mask_11TT: torch.Tensor, trees: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Add to an additive mask, on a CPU, the mask of each tree alone.

    Args:
        trees: where each begins, and where it ends.
    """
    if mask_11TT.device.type == "cpu":
        mask_11TT.trees = [  # pyright: ignore[reportAttributeAccessIssue]
            mask_11TT[..., start:end, start:end].float().contiguous() for start, end in trees
        ]
    return mask_11TT


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `sdpa` does, arguments and all; returns (1, T, heads, width of a value)."""
    masks: list[torch.Tensor] | None = getattr(attention_mask, "trees", None)
    if masks is None or any(options.get(name) is not None for name in ("position_bias", "softcap")):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    result: Any = _Recomputed.apply(*(x.to(dtype) for x in (query, key, value)), masks, dropout, scaling)
    return result, None


AttentionInterface.register("sdpa", attend)


class _Recomputed(torch.autograd.Function):
    """Keeps its inputs, in their type and as many heads as they have; what else backward needs is computed again."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        ctx.save_for_backward(*arguments[:3])
        ctx.others = arguments[3:]
        return _tree_by_tree(*arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            result = _tree_by_tree(*inputs, *ctx.others)
        return *torch.autograd.grad(result, inputs, gradients), None, None, None


def _tree_by_tree(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    masks: list[torch.Tensor],
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    shared, sizes = query.shape[1] // key.shape[1], [mask.shape[-1] for mask in masks]
    with torch.autocast("cpu", enabled=False):
        parts = [
            scaled_dot_product_attention(
                q, repeat_kv(k, shared), repeat_kv(v, shared), attn_mask=mask, dropout_p=dropout, scale=scaling
            ).transpose(1, 2)
            for mask, q, k, v in zip(masks, *(x.float().split(sizes, dim=2) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(parts, dim=1).to(query.dtype)
