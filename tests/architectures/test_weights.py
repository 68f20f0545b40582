"""The learner takes a model's own weights, of every family: the sampler has the same, and so has a merged file."""

from __future__ import annotations

import numpy as np
import pytest

from genius_lite.learner.model import load_policy, without_adapter
from genius_lite.recipe import Learner
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.full_precision import load_weights, write_full_precision
from genius_lite.weights.importing import Base, check_supported, save_checkpoint
from genius_lite.weights.merge import merge, requantize
from tests.architectures.test_import import AGREE, MATTERS, MERGED, apart, by_learner, by_sampler
from tests.architectures.zoo import ARCHITECTURES
from tests.support.adapters import random_adapter

# Stacks of experts and what chooses among them are no linear layers to transformers, nor are convolutions and tables.
WITHOUT_ADAPTER = {
    "qwen3moe": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.gate"],
    "qwen35": ["linear_attn.conv1d"],
    "qwen35-vision": ["linear_attn.conv1d"],
    "gemma4": ["embed_tokens_per_layer"],
    "granitehybrid": [
        "block_sparse_moe.experts.down_proj",
        "block_sparse_moe.experts.gate_up_proj",
        "block_sparse_moe.router",
        "mamba.conv1d",
    ],
    "lfm2": ["conv.conv"],
    "gpt-oss": [
        "mlp.experts.down_proj",
        "mlp.experts.down_proj_bias",
        "mlp.experts.gate_up_proj",
        "mlp.experts.gate_up_proj_bias",
        "mlp.router",
    ],
}
PREDICTS_MORE = "blk.4."  # the block of qwen35 for one more token, which the learner does not have


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(name, zoo, tmp_path_factory) -> Base:
    """A tiny model: a Q8_0 file, in place of whose matrices its own are written."""
    folder = tmp_path_factory.mktemp(name)
    requantize(gguf_file.read(zoo / f"{name}.gguf"), "Q8_0", folder / "quantized.gguf")
    quantized = gguf_file.read(folder / "quantized.gguf")
    check_supported(quantized, with_weights=True)
    model, made = load_weights(zoo / name), folder / "model.gguf"
    found = write_full_precision(quantized, model.state_dict(), zoo / name, made, lambda n: None)
    save_checkpoint(gguf_file.read(made), model, found, folder / "hf-checkpoint")
    return Base(gguf_file.read(made), folder / "hf-checkpoint")


def test_no_matrix_is_left_from_the_quantized_file(name, base, zoo):
    exact = {t.name: t for t in gguf_file.read(zoo / f"{name}.gguf").tensors}
    left = []
    for tensor in (t for t in base.gguf.tensors if len(t.shape) > 1):
        if not np.array_equal(base.gguf.dequantized(tensor), base.gguf.dequantized(exact[tensor.name])):
            left.append(tensor.name)
    assert all(tensor.startswith(PREDICTS_MORE) for tensor in left) if ARCHITECTURES[name].predicts_more else not left


def test_learner_and_sampler_agree_and_so_do_adapter_and_merged_file(name, base, tmp_path):
    folder = tmp_path / "adapter"
    random_adapter(base.hf_checkpoint, folder, spread=0.03)
    adapter = Adapter.load(folder, base)
    kept = merge(base, adapter, "source", tmp_path / "merged.gguf")
    assert kept.share == pytest.approx(1, abs=0.01)
    policy = load_policy(base.hf_checkpoint, folder, Learner(), "cpu", "fp32", seed=0)
    assert without_adapter(policy) == WITHOUT_ADAPTER.get(name, [])
    with policy.disable_adapter():
        unchanged = by_learner(policy)
    changed = by_learner(policy)
    assert apart(unchanged, by_sampler(base.gguf.path)) < AGREE
    assert apart(changed, by_sampler(tmp_path / "merged.gguf")) < MERGED
    assert apart(changed, unchanged) > MATTERS, "the adapter must matter for this to show anything"
