"""NF4 on the CPU, where bitsandbytes has a second layout for inference."""

from __future__ import annotations

import pytest
import torch

from genius_lite.learner.model import load_policy, response_logps
from genius_lite.learner.packing import Response, rows
from genius_lite.recipe import Learner

RESPONSES: list[Response] = [([100, 101], [102, 103, 104]), ([100, 101], [105, 106])]


@pytest.mark.parametrize("computed_in_bf16", [False, True])
def test_gradients_reach_every_layer_after_a_pass_without_them(tiny, monkeypatch, computed_in_bf16):
    monkeypatch.setattr("genius_lite.learner.model.compute_in_bf16", lambda device: computed_in_bf16)
    policy = load_policy(tiny.hf_checkpoint, None, Learner(rank=4, lora_alpha=8), "cpu", "nf4", seed=0)
    with torch.no_grad():
        before = response_logps(policy, rows(RESPONSES))
    policy.train()
    after = response_logps(policy, rows(RESPONSES))
    assert torch.equal(before, after)
    (after[0] - after[1]).backward()
    reached = {
        name: p.grad is not None and bool(p.grad.any()) for name, p in policy.named_parameters() if "lora_B" in name
    }
    assert len(reached) == 14  # seven matrices in each of two layers
    assert all(reached.values()), [name for name, there in reached.items() if not there]
