"""The learner takes a model's own weights, of every family: the sampler has the same, and so has a merged file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genius_lite.errors import UserError
from genius_lite.learner.targets import without_adapter
from genius_lite.weights import gguf_file
from genius_lite.weights.full_precision import load_weights, write_full_precision
from tests.architectures.agreement import AGREE, MATTERS, MERGED, apart, by_learner, by_sampler
from tests.architectures.table import WITHOUT_ADAPTER
from tests.architectures.zoo import ARCHITECTURES

PREDICTS_MORE = "blk.4."  # the block of qwen35 for one more token, which the learner does not have


def test_no_matrix_is_left_from_the_quantized_file(model):
    exact, ours = gguf_file.read(model.zoo / f"{model.name}.gguf"), model.base.gguf
    by_name = {t.name: exact.dequantized(t) for t in exact.tensors}
    matrices = [t for t in ours.tensors if len(t.shape) > 1]
    left = [t.name for t in matrices if not np.array_equal(ours.dequantized(t), by_name[t.name])]
    more = ARCHITECTURES[model.name].predicts_more
    assert all(name.startswith(PREDICTS_MORE) for name in left) if more else not left


def test_a_stack_of_other_experts_is_refused(imported, tmp_path):
    """What has no name among linear layers is found by its rows, and must be."""
    model = imported("qwen3moe")
    quantized = gguf_file.read(model.base.gguf.path.with_name("quantized.gguf"))
    weights = load_weights(model.zoo / model.name).state_dict()
    torch.nn.init.normal_(weights["model.layers.1.mlp.experts.gate_up_proj"], std=0.2)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj is not there"):
        write_full_precision(quantized, weights, model.zoo / model.name, tmp_path / "x.gguf", lambda n: None)


def test_learner_and_sampler_agree_and_so_do_adapter_and_merged_file(model):
    policy, (merged, kept) = model.policy, model.merged
    assert kept.share == pytest.approx(1, abs=0.01)
    assert without_adapter(policy) == WITHOUT_ADAPTER.get(ARCHITECTURES[model.name].gguf, [])
    with policy.disable_adapter():
        unchanged = by_learner(policy)
    changed = by_learner(policy)
    assert apart(unchanged, by_sampler(model.base.gguf.path)) < AGREE
    assert apart(changed, by_sampler(merged)) < MERGED
    assert apart(changed, unchanged) > MATTERS, "the adapter must matter for this to show anything"
