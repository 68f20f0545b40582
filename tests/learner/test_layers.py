"""Norms and gated layers that keep less, beside transformers' own; products in fp32, beside exact ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from genius_lite.learner import layers, products
from genius_lite.learner.products import factors_in_bf16
from genius_lite.learner.rounding import round_once

SMALL = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2)


def both(plain, ours, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """What each of two gives, and the gradient of x, with the same gradient given."""
    found = []
    for function in (plain, ours):
        own = x.clone().requires_grad_()
        result = function(own)
        (gradient,) = torch.autograd.grad(result, own, torch.linspace(-1, 1, result.numel()).view_as(result).to(result))
        found.append([result.detach(), gradient])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_that_of_transformers(dtype):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(24).to(dtype).requires_grad_(False)
    norm.weight.normal_(1, 0.3)
    theirs, ours = both(norm, partial(layers._normalize, norm), 3 * torch.randn(2, 7, 24).to(dtype))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-6 if dtype == torch.float32 else 8e-3, rtol=8e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_layer_is_that_of_transformers(dtype):
    """With its adapters, whose gradients are compared too."""
    torch.manual_seed(0)
    policy = get_peft_model(
        torch.nn.Sequential(LlamaMLP(SMALL).to(dtype)),
        LoraConfig(r=3, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights=False),
    )
    round_once(policy)
    mlp = policy.get_base_model()[0]
    adapter = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert len(adapter) == 6
    x, found = torch.randn(2, 7, 24).to(dtype), []
    for forward in (mlp.forward, partial(layers._feed, mlp)):
        policy.zero_grad()
        own = x.clone().requires_grad_()
        result = forward(own)
        result.float().square().sum().backward()
        found.append([result.detach(), own.grad, *(p.grad for p in adapter.values())])
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= (1e-6 if dtype == torch.float32 else 0.01) * theirs.norm()


def test_without_an_adapter_a_gated_layer_is_the_plain_one():
    torch.manual_seed(0)
    mlp = LlamaMLP(SMALL)
    x = torch.randn(5, 24)
    assert torch.equal(layers._feed(mlp, x), mlp(x))


def test_who_computes_as_llama_does():
    assert layers._computes_as(Qwen3RMSNorm(8), LlamaRMSNorm)
    assert layers._computes_as(Qwen3MLP(SMALL), LlamaMLP)
    assert not layers._computes_as(Gemma2RMSNorm(8), LlamaRMSNorm), "it adds 1 to its weight"
    assert not layers._computes_as(torch.nn.Linear(8, 8), LlamaRMSNorm)


def test_another_activation_is_left_alone():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            config = Gemma2Config(hidden_size=8, intermediate_size=8, num_attention_heads=2)
            self.mlp, self.norm = Gemma2MLP(config), LlamaRMSNorm(8)

        def get_decoder(self):
            return self

    holder = Holder()
    assert layers._computes_as(holder.mlp, LlamaMLP), "or this test shows nothing"
    layers.keep_less(holder)
    assert not isinstance(holder.mlp.forward, partial)
    assert isinstance(holder.norm.forward, partial)


def test_products_of_bf16_are_those_of_fp32():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(96, 256, generator=generator).bfloat16().float() for _ in range(2))
    exact, before = a.double() @ b.double().T, torch.backends.mkldnn.matmul.fp32_precision
    with factors_in_bf16():
        assert (a @ b.T - exact).abs().max() < 1e-4
        rounded = (1.001 * a) @ b.T
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with factors_in_bf16(allowed=False):
        plain = (1.001 * a) @ b.T
    assert (plain - 1.001 * exact).abs().max() < 1e-4
    assert torch.equal(rounded, plain) != products._sums_in_fp32()
