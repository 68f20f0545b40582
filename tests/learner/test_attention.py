"""Attention in blocks, beside torch's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from genius_lite.learner import attention
from genius_lite.learner.attention import attend, tree_mask
from genius_lite.learner.model import takes_trees
from genius_lite.learner.packing import trees
from tests.support.training import Unadapted

FOREST = trees(
    [
        [([1, 2, 3], [4, 5, 6, 7]), ([1, 2, 3], [4, 5, 8]), ([1, 2, 3], [9])],
        [([5], [6])],
        [([1, 2], [3, 4, 5, 6, 7, 8, 9]), ([1, 2], [3, 4, 1, 1, 1, 1])],
    ]
)


def both(dtype: torch.dtype, heads: int, shared: int) -> list[list[torch.Tensor]]:
    """What attention gives, and its gradients, ours and then torch's."""
    generator, count = torch.Generator().manual_seed(0), FOREST.tokens_BT.size
    inputs = [torch.randn(1, n, count, 16, generator=generator).bfloat16().to(dtype) for n in (heads, shared, shared)]
    given = torch.randn(1, count, heads, 16, generator=generator)
    module: Any = SimpleNamespace(num_key_value_groups=heads // shared)
    mask = tree_mask(torch.from_numpy(FOREST.end_BT), FOREST.trees, dtype)
    found = []
    for function, seen in ((attend, mask), (sdpa_attention_forward, mask.clone())):  # a copy has no blocks
        own = [x.clone().requires_grad_() for x in inputs]
        result, _ = function(module, *own, seen, scaling=0.3)
        (result.float() * given).sum().backward()
        found.append([result.detach(), *(x.grad for x in own if x.grad is not None)])
    return found


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
def test_it_is_the_attention_of_torch(heads, shared, block, monkeypatch):
    monkeypatch.setattr(attention, "_ROWS", block)
    ours, theirs = both(torch.float32, heads, shared)
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_in_bf16_it_is_no_further_from_the_exact_one_than_torch_is():
    exact, _ = both(torch.float32, 6, 2)
    ours, theirs = both(torch.bfloat16, 6, 2)
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - true).norm() < 1.1 * (other - true).norm()


def test_masks_that_are_not_marked_are_left_to_torch():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 16, generator=generator) for _ in range(3))
    module: Any = SimpleNamespace(is_causal=True)
    ours, theirs = attend(module, q, k, v, None), sdpa_attention_forward(module, q, k, v, None)
    assert torch.equal(ours[0], theirs[0])


def test_blocks_hold_all_that_is_seen_and_little_else(monkeypatch):
    monkeypatch.setattr(attention, "_ROWS", 3)
    mask: Any = tree_mask(torch.from_numpy(FOREST.end_BT), FOREST.trees, torch.float32)
    seen = torch.zeros(mask.shape[2:], dtype=torch.bool)
    for block in mask.blocks:
        assert any(start <= block.start and block.stop <= end for start, end in FOREST.trees)
        assert ((block.mask_TN == 0).any(dim=0)).all(), "nothing that no token of it sees"
        seen[block.start : block.stop, block.seen_N] = block.mask_TN == 0
    assert torch.equal(seen, mask[0, 0] == 0)


def test_models_attend_block_by_block(tiny, monkeypatch):
    asked = []
    real = attention._weights

    def noted(query, key, block, scale):
        asked.append((block.start, block.stop))
        return real(query, key, block, scale)

    monkeypatch.setattr(attention, "_weights", noted)
    assert takes_trees(Unadapted(tiny.model), longest=100)
    end = 16 + 24 + 12 + 24
    blocks = [(0, 64), (64, end), (end, end + 64), (end + 64, 2 * end)]
    assert asked == blocks * tiny.model.config.num_hidden_layers
