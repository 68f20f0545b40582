"""Attention on a CPU, of what sees each other alone: other trees, and other branches of a tree, are not looked at.

It stands in for transformers' `sdpa` where a mask says which trees it is made of. A tree is cut into blocks of tokens,
and each block is given those tokens of its tree that some token of it sees: of a tree of 724 tokens, three pairs of a
question, that is a third of all there are. Heads that share keys and values are multiplied with them in one product.

All is fp32, and rounded once at the end. Only in the backward pass of a model in bf16 weights of attention and
gradients of scores are rounded to bf16 before they are multiplied, as torch's own kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from genius_lite.learner.products import factors_in_bf16

_ROWS = 64  # of a block: more see more that concerns only some of them, and fewer are worse for products


@dataclass(frozen=True)
class Block:
    """Consecutive tokens, from `start` to before `stop`, the places of what they see, and the mask between them."""

    start: int
    stop: int
    seen_N: torch.Tensor
    mask_TN: torch.Tensor


def tree_mask(end_1T: torch.Tensor, trees: Sequence[tuple[int, int]], dtype: torch.dtype) -> torch.Tensor:
    """Make the additive mask (1, 1, T, T) of a row of trees, each given by its begin and end; see `Inputs`.

    It is 0 where a token (row) sees another (column), and the dtype's minimum elsewhere. On a CPU the blocks that the
    trees are made of go with it.
    """
    place_T = torch.arange(end_1T.shape[1], device=end_1T.device)
    hidden_1TT = (place_T > place_T[:, None]) | (place_T[:, None] >= end_1T[:, None])
    mask_11TT = torch.zeros(hidden_1TT.shape, dtype=dtype, device=end_1T.device)[:, None]
    mask_11TT.masked_fill_(hidden_1TT[:, None], torch.finfo(dtype).min)
    del hidden_1TT
    if mask_11TT.device.type == "cpu":
        blocks = mask_11TT.blocks = list[Block]()  # pyright: ignore[reportAttributeAccessIssue]
        for begin, end in trees:
            for start in range(begin, end, _ROWS):
                stop = min(start + _ROWS, end)
                mask_TT = mask_11TT[0, 0, start:stop]
                seen_N = (mask_TT == 0).any(dim=0).nonzero()[:, 0]
                blocks.append(Block(start, stop, seen_N, mask_TT[:, seen_N].float()))
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
    blocks: list[Block] | None = getattr(attention_mask, "blocks", None)
    if blocks is None or dropout or any(options.get(name) is not None for name in ("position_bias", "softcap")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    result: Any = _InBlocks.apply(*(x[0].to(dtype) for x in (query, key, value)), blocks, scale)
    return result[None], None


AttentionInterface.register("sdpa", attend)


class _InBlocks(torch.autograd.Function):
    """`softmax(scale * query @ key.T + mask) @ value` of queries (H, T, D) and keys and values (K, T, D), as (T, H, D).

    Its inputs are kept, in their type. With P the weights of attention, which are computed again, and O the result:

        dV = P.T @ dO        dP = dO @ V.T        dS = scale * P * (dP - sum(P * dP))
        dQ = dS @ K          dK = dS.T @ Q
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        query_HTD, key_KTD, value_KTD, blocks, scale = arguments
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD)
        ctx.blocks, ctx.scale = blocks, scale
        result_THD = query_HTD.new_empty(query_HTD.shape[1], len(query_HTD), value_KTD.shape[-1])
        with torch.autocast("cpu", enabled=False):
            for block in blocks:
                with factors_in_bf16(query_HTD.dtype == torch.bfloat16):
                    weights_KTN = _weights(_queries(query_HTD, block, key_KTD), _seen(key_KTD, block), block, scale)
                found_KTD = weights_KTN @ _seen(value_KTD, block)
                found_HTD = found_KTD.view(len(query_HTD), -1, found_KTD.shape[-1])
                result_THD[block.start : block.stop] = found_HTD.transpose(0, 1)
        return result_THD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_HTD, key_KTD, value_KTD = ctx.saved_tensors
        gradient_HTD = gradients[0].transpose(0, 1)
        to_query_HTD = torch.empty_like(query_HTD)
        to_key_KTD, to_value_KTD = (torch.zeros(x.shape) for x in (key_KTD, value_KTD))
        with torch.autocast("cpu", enabled=False), factors_in_bf16(query_HTD.dtype == torch.bfloat16):
            for block in ctx.blocks:
                query_KTD, key_KND = _queries(query_HTD, block, key_KTD), _seen(key_KTD, block)
                given_KTD = _queries(gradient_HTD, block, key_KTD)
                weights_KTN = _weights(query_KTD, key_KND, block, ctx.scale)
                to_value_KTD.index_add_(1, block.seen_N, weights_KTN.mT @ given_KTD)
                change_KTN = (given_KTD @ _seen(value_KTD, block).mT).mul_(weights_KTN)
                change_KTN.addcmul_(weights_KTN, change_KTN.sum(dim=-1, keepdim=True), value=-1).mul_(ctx.scale)
                to_key_KTD.index_add_(1, block.seen_N, change_KTN.mT @ query_KTD)
                found_KTD = change_KTN @ key_KND
                to_query_HTD[:, block.start : block.stop] = found_KTD.view(len(query_HTD), -1, found_KTD.shape[-1])
        return to_query_HTD, to_key_KTD.to(key_KTD.dtype), to_value_KTD.to(value_KTD.dtype), None, None


def _queries(x_HTD: torch.Tensor, block: Block, key_KTD: torch.Tensor) -> torch.Tensor:
    """Return a block's tokens in fp32, heads that share a key one below the other, (K, T * shared, D)."""
    return x_HTD[:, block.start : block.stop].float().reshape(len(key_KTD), -1, x_HTD.shape[-1])


def _seen(x_KTD: torch.Tensor, block: Block) -> torch.Tensor:
    return x_KTD[:, block.seen_N].float()


def _weights(query_KTD: torch.Tensor, key_KND: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """Return the weights of attention, (K, T * shared, N)."""
    scores_KTN = query_KTD @ key_KND.mT
    apart = scores_KTN.view(-1, *block.mask_TN.shape)
    torch.add(block.mask_TN, apart, alpha=scale, out=apart)
    return torch.softmax(scores_KTN, dim=-1)
