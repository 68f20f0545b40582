"""What 16 bits hide of an adapter, and what they do not hide any more."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from genius_lite.errors import UserError
from genius_lite.learner import rounding
from genius_lite.learner.head import require_known
from genius_lite.learner.model import _prepared, learn, load_base, load_policy, logps_of, response_logps
from genius_lite.learner.packing import Response, rows
from genius_lite.recipe import Learner

RESPONSES: list[Response] = [([100, 101], [102, 103, 104]), ([100, 101], [105, 106])]
LORA = Learner(rank=4, lora_alpha=4)


@pytest.fixture
def small(monkeypatch):
    """Policies whose adapter adds little, as early in a training: a thousandth of what its matrices give."""
    monkeypatch.setattr("genius_lite.learner.model.compute_in_bf16", lambda device: True)

    def load(hf_checkpoint, precision):
        policy = load_policy(hf_checkpoint, None, LORA, "cpu", precision, seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.001)
        return policy

    return load


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_an_adapted_matrix_adds_all_that_the_adapter_gives(tiny, small, precision):
    """Projected on what the adapter gives; what is rounded twice has lost half of it."""
    layer = small(tiny.hf_checkpoint, precision).get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(40, 25, 64, generator=torch.Generator().manual_seed(1)).bfloat16()

    def seen(forward) -> float:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            given = (layer.lora_B["default"](layer.lora_A["default"](x))).double()
            added = forward(x).double() - layer.base_layer(x).double()
        assert given.std() > 0
        return float((added * given).sum() / given.square().sum())

    assert isinstance(layer.forward, partial)
    _, plain = layer.forward.args
    assert seen(plain) < 0.6, "rounded twice: otherwise this test shows nothing"
    assert seen(layer) == pytest.approx(1, abs=0.03)


def test_a_bias_is_added_too():
    layer = torch.nn.Linear(8, 4).bfloat16()
    policy = get_peft_model(torch.nn.Sequential(layer), LoraConfig(r=2, target_modules=["0"]))
    x = torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = policy(x)
        rounding.round_once(policy)
        after = policy(x)
    torch.testing.assert_close(after, before, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_the_gradient_is_that_of_the_plain_layer(tiny, small, precision):
    def gradients(policy) -> torch.Tensor:
        policy.train()
        policy.zero_grad()
        chosen, rejected = response_logps(policy, rows(RESPONSES))
        (chosen - rejected).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    policy = small(tiny.hf_checkpoint, precision)
    ours = gradients(policy)
    for module in policy.modules():
        if isinstance(module.forward, partial) and module.forward.func is rounding._adapted:
            module.forward = module.forward.args[1]
    theirs = gradients(policy)
    assert len(ours) == len(theirs)
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_a_pass_in_fp32_is_that_of_the_model_in_fp32(tiny, small):
    """With the values that 16 bits left of the weights; and they are as they were afterwards."""
    narrow, wide = small(tiny.hf_checkpoint, "bf16"), small(tiny.hf_checkpoint, "fp32")
    with torch.no_grad():
        for a, b in zip(wide.parameters(), narrow.parameters(), strict=True):
            a.copy_(b)
    before = {n: (p.dtype, p.data_ptr(), p.clone()) for n, p in narrow.named_parameters()}
    with torch.no_grad():
        expected = logps_of(wide, rows(RESPONSES))
        plain = logps_of(narrow, rows(RESPONSES))
        torch.testing.assert_close(logps_of(narrow, rows(RESPONSES), in_fp32=True), expected, atol=1e-4, rtol=1e-5)
        assert (plain - expected).abs().max() > 1e-3, "or this test shows nothing"
        assert torch.equal(logps_of(narrow, rows(RESPONSES)), plain)
    for name, parameter in narrow.named_parameters():
        dtype, place, values = before[name]
        assert (parameter.dtype, parameter.data_ptr()) == (dtype, place)
        assert torch.equal(parameter, values)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in narrow.get_base_model().model.modules())


def test_nf4_in_fp32_differs_by_rounding_alone(tiny, small):
    policy = small(tiny.hf_checkpoint, "nf4")
    with torch.no_grad():
        plain, wide = (logps_of(policy, rows(RESPONSES), in_fp32) for in_fp32 in (False, True))
        torch.testing.assert_close(wide, plain, atol=0.2, rtol=0)
        assert not torch.equal(wide, plain)
        assert torch.equal(logps_of(policy, rows(RESPONSES)), plain)


def test_weights_are_narrow_again_after_a_pass_that_fails(tiny, small):
    policy = small(tiny.hf_checkpoint, "bf16")
    base = policy.get_base_model()
    base.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logps_of(policy, rows(RESPONSES), in_fp32=True)
    assert {p.dtype for n, p in policy.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_nothing_is_dropped_while_it_learns(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny.hf_checkpoint, attention_dropout=0.3, dtype=torch.float32)
    assert model.model.layers[0].self_attn.attention_dropout == 0.3
    model.model.norm = torch.nn.Sequential(model.model.norm, torch.nn.Dropout(0.3))
    policy = _prepared(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])))
    assert model.model.layers[0].self_attn.attention_dropout == 0
    learn(policy)
    first, second = (response_logps(policy, rows(RESPONSES)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_head_that_does_more_than_is_known_is_refused(tiny, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny.hf_checkpoint)
    require_known(model)
    plain = type(model).forward

    def scaled(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)
        found.logits = 0.5 * found.logits
        return found

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(UserError, match="makes its logits in a way that is not known here"):
        load_base(tiny.hf_checkpoint, "cpu", "fp32")
