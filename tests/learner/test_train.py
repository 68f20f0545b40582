from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from genius_lite.learner.model import load_base, target_modules
from genius_lite.learner.train import NonFiniteLossError, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair

PAIRS = [
    PreferencePair(f"q{q}", step, [10 + q, 11], [20 + step, 21, 22], [30, 31 + step], 0.0, -0.1)
    for q in range(3)
    for step in range(2)
]


def _train(tiny, out, start=None, *, seed=0, precision="fp32", **options):
    cfg = Learner(**{"lr": 1e-2, "batch_pairs": 2, "rank": 4, "lora_alpha": 8, **options})
    return train_adapter(tiny.master, start, PAIRS, cfg, "cpu", precision, (seed, 1), out)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_training_prefers_the_chosen(tiny, tmp_path, precision):
    before = _train(tiny, tmp_path / "a", precision=precision, lr=1e-9)
    after = _train(tiny, tmp_path / "b", tmp_path / "a", precision=precision, epochs=4)
    assert before.margin == pytest.approx(0, abs=0.2)
    assert after.margin > before.margin + 1
    assert after.loss < before.loss
    assert after.updates == 12
    assert 0 < after.shared_tokens < 1


def test_a_new_adapter_is_the_base_model(tiny, tmp_path):
    report = _train(tiny, tmp_path / "a", lr=1e-12, batch_pairs=100)
    assert report.margin == pytest.approx(0, abs=1e-4)
    assert report.loss == pytest.approx(0.6931, abs=1e-3)


def test_training_is_repeatable_and_goes_on_from_its_start(tiny, tmp_path):
    torch.manual_seed(123)
    _train(tiny, tmp_path / "a")
    torch.manual_seed(456)
    _train(tiny, tmp_path / "b")
    _train(tiny, tmp_path / "c", tmp_path / "a")
    a, b, c = (load_file(tmp_path / x / "adapter_model.safetensors") for x in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_the_global_generator_is_left_alone(tiny, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    _train(tiny, tmp_path / "a")
    assert torch.equal(torch.rand(1), expected)


def test_divergence_stops_with_the_query_named(tiny, tmp_path):
    pairs = [PreferencePair("bad", 0, [1], [2], [3], float("nan"), 0.0)]
    with pytest.raises(NonFiniteLossError, match="query bad, step 0"):
        train_adapter(tiny.master, None, pairs, Learner(), "cpu", "fp32", (0, 1), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_embeddings_and_head_are_not_adapted(tiny):
    names = target_modules(load_base(tiny.master, "cpu", "fp32"))
    assert len(names) == 2 * 7
    assert all(n.endswith("_proj") for n in names)


def test_nf4_weights_are_four_bit(tiny):
    base = load_base(tiny.master, "cpu", "nf4")
    weight = base.model.layers[0].self_attn.q_proj.weight
    assert weight.element_size() * weight.numel() == 64 * 64 // 2
