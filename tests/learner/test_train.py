from __future__ import annotations

import json
import math
import os
from typing import get_args

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from genius_lite.errors import NonFiniteError, UserError
from genius_lite.hardware.device import Precision
from genius_lite.learner import reference as reference_module
from genius_lite.learner import scores as scores_module
from genius_lite.learner import train as train_module
from genius_lite.learner.batches import schedule
from genius_lite.learner.head import Int8Embedding
from genius_lite.learner.logprob_mismatch import Sample, check, mismatch_limit
from genius_lite.learner.model import learn, load_base, load_policy, response_logps, weight_bytes
from genius_lite.learner.packing import by_query, rows, unshared_tokens
from genius_lite.learner.scores import clustered_error
from genius_lite.learner.targets import target_modules
from genius_lite.learner.train import learning_rate, make_optimizer
from genius_lite.recipe import Learner, Loss
from genius_lite.records import PreferencePair, seed_of
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import import_checkpoint
from tests.conftest import ONE_ARCHITECTURE
from tests.support import warm
from tests.support.models import VOCABULARY
from tests.support.training import PAIRS, SMALL, train_tiny, weights_of

TRAINING = "tests.support.training"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_training_prefers_the_chosen(tiny, tmp_path, precision):
    before = train_tiny(tiny, tmp_path / "a", precision=precision, lr=1e-9)
    after = train_tiny(tiny, tmp_path / "b", tmp_path / "a", precision=precision, epochs=4)
    assert before.margin == pytest.approx(0, abs=0.2)
    assert after.margin > before.margin + 1
    assert after.loss < before.loss
    assert after.updates == len(after.curve) == 12
    assert 0 < after.shared_tokens < 1


def test_gradients_in_bf16_are_those_in_fp32(tiny, tmp_path):
    train_tiny(tiny, tmp_path / "a", epochs=2)  # a B that is not zero gives A a gradient too

    def gradient(precision: Precision) -> torch.Tensor:
        policy = load_policy(tiny.hf_checkpoint, tmp_path / "a", Learner(**SMALL), "cpu", precision, seed=0)
        chosen, rejected = response_logps(policy, rows([([10, 11], [20, 21, 22]), ([10, 11], [30, 31])]))
        (chosen - rejected).backward()
        trained = [p.grad for p in policy.parameters() if p.requires_grad and p.grad is not None]
        assert {g.dtype for g in trained} == {torch.float32}
        return torch.cat([g.flatten() for g in trained])

    ours, exact = gradient("bf16"), gradient("fp32")
    assert len(ours) == len(exact) and exact.norm() > 0
    assert (ours - exact).norm() < 0.05 * exact.norm()


@ONE_ARCHITECTURE
@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_loss_trains(tiny, tmp_path, loss):
    report = train_tiny(tiny, tmp_path / "a", loss=loss, epochs=6, length_normalize=loss == "ipo", lr=3e-3)
    first, last = report.curve[0], report.curve[-1]
    assert last["margin"] > first["margin"]


def _learns_the_same_without_the_rejected_response(tiny, tmp_path) -> None:
    options = {"loss": "sft", "epochs": 2, "length_normalize": True}
    alone = train_tiny(tiny, tmp_path / "alone", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "computed", lambda group, cfg: [*group])
        whole = train_tiny(tiny, tmp_path / "whole", **options)
    ours, theirs = weights_of(tmp_path / "alone"), weights_of(tmp_path / "whole")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-3) for name in theirs)
    assert [row["loss"] for row in alone.curve] == pytest.approx([row["loss"] for row in whole.curve], rel=1e-4)
    assert (alone.margin, alone.shared_tokens) == (pytest.approx(whole.margin, rel=1e-2), whole.shared_tokens)
    both, chosen = ([row["margin"] for row in report.curve] for report in (whole, alone))
    assert chosen[0] == pytest.approx(0, abs=1e-3)
    assert chosen[-1] > 0, "what the chosen ones gained"
    assert chosen != pytest.approx(both)


def test_sft_learns_the_same_without_the_rejected_response(tiny, tmp_path):
    _learns_the_same_without_the_rejected_response(tiny, tmp_path)


def test_a_recurrent_model_does_so_too(tiny_mamba, tmp_path):
    tiny_mamba.hf_checkpoint = tmp_path / "hf-checkpoint"
    import_checkpoint(gguf_file.read(tiny_mamba.gguf), tiny_mamba.hf_checkpoint, lambda n: None)
    _learns_the_same_without_the_rejected_response(tiny_mamba, tmp_path)


def test_a_new_adapter_is_the_base_model(tiny, tmp_path):
    report = train_tiny(tiny, tmp_path / "a", lr=1e-12, batch_pairs=100)
    assert report.margin == pytest.approx(0, abs=1e-4)
    assert report.loss == pytest.approx(0.6931, abs=1e-3)


@ONE_ARCHITECTURE
def test_training_is_repeatable_and_goes_on_from_its_start(tiny, tmp_path):
    torch.manual_seed(123)
    train_tiny(tiny, tmp_path / "a")
    torch.manual_seed(456)
    train_tiny(tiny, tmp_path / "b")
    train_tiny(tiny, tmp_path / "c", tmp_path / "a")
    a, b, c = (weights_of(tmp_path / x) for x in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


@ONE_ARCHITECTURE
@pytest.mark.parametrize(
    "changed", [{"precision": "fp32"}, {"precision": "nf4"}, {"optimizer": "paged_adamw_8bit", "rank": 64}], ids=str
)
def test_killed_at_any_update_and_resumed_it_ends_bit_identical(tiny, tmp_path, monkeypatch, changed):
    options = {"epochs": 2, "schedule": "cosine", **changed}  # of matrices below 4096 numbers Adam's state has 32 bits
    whole = train_tiny(tiny, tmp_path / "whole", **options)
    assert whole.updates == 6
    update, score = train_module._Trainer._update, reference_module.score
    for killed_at in range(6):

        def dies(self, number, batch, killed_at=killed_at):
            if number == killed_at:
                raise KeyboardInterrupt
            return update(self, number, batch)

        out = tmp_path / f"killed-{killed_at}"
        monkeypatch.setattr(train_module._Trainer, "_update", dies)
        monkeypatch.setattr(reference_module, "score", score)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tiny, out, **options)
        done = []
        monkeypatch.setattr(
            train_module._Trainer, "_update", lambda self, n, b, done=done: done.append(n) or update(self, n, b)
        )
        monkeypatch.setattr(reference_module, "score", _known)
        report = train_tiny(tiny, out, **options)
        assert done == list(range(killed_at, 6))
        assert report == whole
        a, b = weights_of(tmp_path / "whole"), weights_of(out)
        assert all(torch.equal(a[k], b[k]) for k in a)


def _known(*arguments):
    raise AssertionError("the reference is kept: it is not scored again after a restart")


DIES_AT_THE_SIXTH = """
import os
from genius_lite.learner import state
real, calls = state.save_file, []
def save(*a):
    calls.append(1)
    if len(calls) > 5:
        os._exit(9)
    real(*a)
state.save_file = save
"""


@ONE_ARCHITECTURE
def test_a_real_kill_between_updates(tiny, tmp_path):
    """The process dies without warning while states are written, again and again; the end is the same."""
    train_tiny(tiny, tmp_path / "whole", epochs=2)
    arguments, codes = [str(tiny.hf_checkpoint), str(tmp_path / "killed")], []
    while len(codes) < 20 and 0 not in codes:
        ended = warm.run(arguments, tmp_path, {**os.environ}, module=TRAINING, before=DIES_AT_THE_SIXTH)
        codes.append(ended.returncode)
    assert {*codes} == {9, 0}
    a, b = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(a[k], b[k]) for k in a)


@ONE_ARCHITECTURE
def test_the_global_generator_is_left_alone(tiny, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train_tiny(tiny, tmp_path / "a")
    assert torch.equal(torch.rand(1), expected)


@ONE_ARCHITECTURE
def test_divergence_stops_with_the_batch_named_and_saved(tiny, tmp_path):
    pairs = [*PAIRS, PreferencePair("bad", 0, [1], [2], [3], float("nan"), 0.0, -0.5, -0.6, True, True)]
    with pytest.raises(NonFiniteError, match="query bad, step 0") as error:
        train_tiny(tiny, tmp_path / "a", pairs=pairs, batch_pairs=100)
    assert not (tmp_path / "a").exists()
    saved = tmp_path / "a-work" / "bad-batch.jsonl"
    assert str(saved) in str(error.value)
    # NaN cannot be written as JSON; what is needed to find the record is there.
    assert b'"bad"' in saved.read_bytes()


@ONE_ARCHITECTURE
def test_a_score_that_is_not_finite_names_its_pair(tiny, tmp_path, monkeypatch):
    real = scores_module.response_logps

    def broken(policy, inputs, in_fp32=False):
        logps_2P = real(policy, inputs, in_fp32).clone()
        logps_2P[5] = float("nan")  # the rejected response of the third pair
        return logps_2P

    monkeypatch.setattr(scores_module, "response_logps", broken)
    with pytest.raises(NonFiniteError, match="query q1, step 0: the learner's log-probability"):
        train_tiny(tiny, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_limit_of_disagreement_goes_by_precision_and_file():
    found = {p: mismatch_limit(Learner(), p, same_weights=True) for p in ("fp32", "bf16", "nf4")}
    assert found == {"fp32": 0.15, "bf16": 0.15, "nf4": 0.6}
    assert mismatch_limit(Learner(), "bf16", same_weights=False) == 1.0
    assert mismatch_limit(Learner(parity_limit=0.3), "bf16", same_weights=False) == 0.3


def test_a_disagreement_is_told_before_it_is_too_large():
    assert check(0.03, 0.15, "bf16") is None
    assert check(0.07, 0.15, "bf16") == (
        "learner and sampler differ by 0.070 nats a token; the run would stop at 0.15, learner.parity_limit"
    )
    with pytest.raises(UserError, match=r"disagree by 0.420 nats a token, more than learner.parity_limit \(0.15\)"):
        check(0.42, 0.15, "bf16")


def test_a_disagreement_that_is_no_number_is_one():
    check(0.1, limit=0.1, precision="fp32")
    for nats in (0.2, float("inf"), float("nan")):
        with pytest.raises(UserError, match="the learner and the sampler disagree by"):
            check(nats, limit=0.1, precision="fp32")


@ONE_ARCHITECTURE
@pytest.mark.parametrize("said", ["CUDA out of memory. Tried 1 GiB", "DefaultCPUAllocator: not enough memory: "])
def test_memory_running_out_halves_the_packs_and_changes_nothing_else(tiny, tmp_path, monkeypatch, said):
    expected = train_tiny(tiny, tmp_path / "whole", batch_pairs=6)
    assert expected.updates == 1
    real, refused, lines = train_module.response_logps, [], []

    def short_of_memory(policy, inputs):
        if inputs.tokens_BT.size > 12:
            refused.append(inputs.tokens_BT.size)
            raise RuntimeError(said)
        return real(policy, inputs)

    monkeypatch.setattr(train_module, "response_logps", short_of_memory)
    report = train_tiny(tiny, tmp_path / "short", batch_pairs=6, say=lines.append)
    assert refused
    assert any("memory ran out" in line for line in lines)
    assert report.loss == pytest.approx(expected.loss, abs=1e-5)
    assert report.curve[0]["grad_norm"] == pytest.approx(expected.curve[0]["grad_norm"], rel=1e-4)
    a, b = weights_of(tmp_path / "whole"), weights_of(tmp_path / "short")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(
        train_module, "response_logps", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. "))
    )
    with pytest.raises(UserError, match="does not fit into memory"):
        train_tiny(tiny, tmp_path / "none")


@ONE_ARCHITECTURE
def test_what_is_scored_again_for_want_of_memory_counts_once_for_the_importance(tiny, tmp_path, monkeypatch):
    real, refused, lines = scores_module.response_logps, [], []

    def runs_out_once(policy, inputs, in_fp32=False):
        found = real(policy, inputs, in_fp32)  # by which the layers were gone through
        if not refused:
            refused.append(inputs)
            raise torch.OutOfMemoryError("CUDA out of memory. ")
        return found

    monkeypatch.setattr(scores_module, "response_logps", runs_out_once)
    train_tiny(tiny, tmp_path / "short", say=lines.append)
    (limit,) = [int(line.split()[7]) for line in lines if line.startswith("memory ran out: packs of at most ")]
    train_tiny(tiny, tmp_path / "small", max_pack_tokens=limit)
    ours, theirs = (load_file(tmp_path / name / "importance.safetensors") for name in ("short", "small"))
    assert ours.keys() == theirs.keys()
    for name, sums in ours.items():
        torch.testing.assert_close(sums, theirs[name], rtol=1e-4, atol=1e-6)


@ONE_ARCHITECTURE
def test_of_packs_the_one_that_failed_is_halved_and_not_the_largest(tiny, tmp_path, monkeypatch):
    """Where others held memory for a moment; the largest may be of one pair, which was computed."""
    real, refused, lines = train_module.response_logps, [], []
    long = msgspec.structs.replace(PAIRS[0], query_id="long", chosen_tokens=[*range(40, 60)])

    def fails_once(policy, inputs):
        if not refused and 8 < inputs.tokens_BT.size < 24:
            refused.append(inputs.tokens_BT.size)
            raise torch.OutOfMemoryError("CUDA out of memory. ")
        return real(policy, inputs)

    monkeypatch.setattr(train_module, "response_logps", fails_once)
    report = train_tiny(tiny, tmp_path / "a", pairs=[long, *PAIRS], batch_pairs=9, max_pack_tokens=26, say=lines.append)
    assert refused and report.updates >= 1
    assert [line for line in lines if line.startswith("memory ran out: packs of at most ")]


@ONE_ARCHITECTURE
def test_a_faulty_forward_pass_keeps_its_own_error(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "response_logps", lambda *a: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        train_tiny(tiny, tmp_path / "a")


def test_nothing_draws_at_random_while_it_learns():
    """A router of experts that does so in training mode, as PhiMoE's and DBRX's."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = PhimoeConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.5, **sizes)
    torch.manual_seed(0)
    model, tokens = PhimoeForCausalLM(config), torch.arange(32)[None]

    def apart() -> float:
        with torch.no_grad():
            return float((model(tokens).logits - model(tokens).logits).abs().max())

    model.train()
    assert apart() > 0.01, "or this shows nothing"
    learn(model)
    assert apart() == 0
    assert model.model.training, "or checkpointing is off"


def test_checkpointing_computes_the_same(tiny, tmp_path):
    plain = train_tiny(tiny, tmp_path / "a", gradient_checkpointing=False)
    again = train_tiny(tiny, tmp_path / "b", gradient_checkpointing=True)
    assert again.loss == pytest.approx(plain.loss, abs=1e-6)
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


def test_parity_is_reported_and_enforced(tiny, tmp_path):
    prompt, response = [257, 72, 101], [108, 108, 111]
    with torch.no_grad():
        logits = tiny.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    true = [logits[i + 2, token].item() for i, token in enumerate(response)]
    same = train_tiny(tiny, tmp_path / "a", samples=[Sample(prompt, response, true)])
    assert same.logprob_mismatch == pytest.approx(0, abs=0.01)  # the checkpoint is F16
    off = [value - 0.7 for value in true]
    with pytest.raises(UserError, match=r"disagree by 0\.(69|70)\d* nats a token"):
        train_tiny(tiny, tmp_path / "b", samples=[Sample(prompt, response, off)], parity_limit=0.5)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_learning_rates(schedule, rates):
    cfg = Learner(lr=1.0, warmup=0.2, schedule=schedule)
    assert [learning_rate(u, 10, cfg) for u in range(10)] == pytest.approx(rates, abs=1e-4)


def test_the_longest_batch_comes_first_and_none_is_lost():
    import numpy as np

    lengths = [3, 9, 4, 30, 5]
    groups = by_query(
        [PreferencePair(f"q{i}", 0, [1], [2] * n, [3], 0.0, 0.0, 0.0, 0.0, True, True) for i, n in enumerate(lengths)]
    )
    epochs = schedule(groups, Learner(batch_pairs=1, epochs=2), np.random.default_rng(0))
    assert unshared_tokens(epochs[0][0][0]) == max(unshared_tokens(group) for group in groups)
    for epoch in epochs:
        assert sorted(batch[0][0].query_id for batch in epoch) == [f"q{i}" for i in range(5)]
    cut_off = [PreferencePair("q5", 0, [1], [2], [3] * 99, 0.0, 0.0, 0.0, 0.0, True, True)]
    groups = by_query([pair for group in groups for pair in group] + cut_off)
    for loss, first in (("aco", "q5"), ("sft", "q3")):  # whose updates compute no rejected response
        (epoch,) = schedule(groups, Learner(batch_pairs=1, loss=loss), np.random.default_rng(0))
        assert epoch[0][0][0].query_id == first


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32)
)
def test_every_epoch_has_as_many_updates_of_about_as_many_pairs(sizes, batch_pairs, epochs, seed):
    import numpy as np

    groups = by_query(
        [
            PreferencePair(f"q{i}", step, [1], [2], [3], 0.0, 0.0, 0.0, 0.0, True, True)
            for i, size in enumerate(sizes)
            for step in range(size)
        ]
    )
    found = schedule(groups, Learner(batch_pairs=batch_pairs, epochs=epochs), np.random.default_rng(seed))
    assert len(found) == epochs
    assert {len(epoch) for epoch in found} == {min(len(groups), max(1, int(sum(sizes) / batch_pairs + 0.5)))}
    for epoch in found:
        assert sorted(group[0].query_id for update in epoch for group in update) == sorted(
            f"q{i}" for i in range(len(sizes))
        )
        each = [sum(map(len, update)) for update in epoch]
        even = sum(sizes) / len(epoch)
        assert min(each) >= 1
        if even >= 2 * max(sizes):  # no boundary is further from where it belongs than half a question
            assert min(each) >= even - max(sizes)
            assert max(each) <= even + max(sizes)


@ONE_ARCHITECTURE
def test_the_same_pairs_are_scored_in_fp32_whatever_was_trained_in(tiny, tmp_path):
    """The margin of the same adapter, as bf16 and as fp32 weights see it, within what bf16 changes of the weights."""
    many = [
        PreferencePair(
            f"q{i // 2}", i % 2, [10, 11], [20 + i % 9, 21, 22], [30, 31 + i % 7], 0.0, 0.0, 0.0, 0.0, True, True
        )
        for i in range(70)
    ]
    train_tiny(tiny, tmp_path / "start", pairs=many, epochs=2)
    still = {"lr": 1e-12, "pairs": many, "batch_pairs": 100}
    reports = [train_tiny(tiny, tmp_path / p, tmp_path / "start", precision=p, **still) for p in ("fp32", "bf16")]
    exact, ours = reports
    assert [(r.scored_pairs, r.pairs) for r in reports] == [(16, 70)] * 2
    assert exact.scored_questions == ours.scored_questions >= 8
    assert exact.margin > 1
    assert ours.margin == pytest.approx(exact.margin, rel=0.01)
    assert ours.margin_error == pytest.approx(exact.margin_error, rel=0.05)


def test_the_margins_error_by_hand():
    # Mean 2; deviations of the questions' pairs summed: -2, 0, 2; (3/2 * 8)**0.5 / 4.
    margins = {("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 2.0, ("c", 0): 4.0}
    assert clustered_error(margins) == pytest.approx(math.sqrt(1.5 * 8) / 4)
    assert clustered_error({("a", 0): 1.0, ("a", 1): 3.0}) is None
    # With a pair a question it is the usual one.
    apart = {("a", 0): 1.0, ("b", 0): 2.0, ("c", 0): 6.0}
    assert clustered_error(apart) == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_embeddings_and_head_are_not_adapted(tiny):
    base = load_base(tiny.hf_checkpoint, "cpu", "fp32")
    names = target_modules(base)
    assert len(names) == 2 * 7
    assert all(n.endswith("_proj") for n in names)
    assert len(target_modules(base, ["q_proj", "v_proj"])) == 4
    with pytest.raises(UserError, match="`lm_head` is no layer that can be adapted; known are down_proj, "):
        target_modules(base, ["lm_head"])


def test_nf4_weights_are_four_bit_and_tables_eight(tiny):
    base = load_base(tiny.hf_checkpoint, "cpu", "nf4")
    weight = base.model.layers[0].self_attn.q_proj.weight
    assert weight.element_size() * weight.numel() == 64 * 64 // 2
    table = base.get_input_embeddings()
    assert isinstance(table, Int8Embedding)
    assert (base.get_output_embeddings() is table) == (tiny.architecture == "llama")  # tied there
    exact = tiny.model.get_input_embeddings().weight
    assert (table[:VOCABULARY] - exact).abs().max() <= exact.abs().max() / 127
    torch.testing.assert_close(table(torch.tensor([[3, 5]])), table[:9][[3, 5]][None])
    assert weight_bytes(base) < 0.4 * weight_bytes(load_base(tiny.hf_checkpoint, "cpu", "bf16"))


def test_a_recurrent_model_says_that_it_takes_rows(tiny_mamba, tmp_path):
    tiny_mamba.hf_checkpoint = tmp_path / "hf-checkpoint"
    import_checkpoint(gguf_file.read(tiny_mamba.gguf), tiny_mamba.hf_checkpoint, lambda n: None)
    said: list[str] = []
    report = train_tiny(tiny_mamba, tmp_path / "a", say=said.append, epochs=4)
    bare, rows = said
    left = "mixer.A_log, mixer.conv1d, mixer.dt_proj, mixer.out_proj"
    assert bare == f"these matrices get no adapter and stay as they are: {left}"
    assert "this model cannot share prefixes" in rows
    assert report.margin > 0
    assert report.shared_tokens <= 0


@ONE_ARCHITECTURE
def test_the_report_is_json(tiny, tmp_path):
    report = train_tiny(tiny, tmp_path / "a")
    assert json.loads(json.dumps(msgspec.to_builtins(report)))["curve"][0]["pairs"] == 2


def test_experts_that_get_no_adapter_are_named():
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from genius_lite.learner.targets import target_modules, without_adapter

    config = Qwen3MoeConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    policy = get_peft_model(model, LoraConfig(r=4, target_modules=target_modules(model)))
    assert without_adapter(policy) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.gate"]


@ONE_ARCHITECTURE
def test_another_seed_begins_with_another_adapter_and_learns_in_another_order(tiny, tmp_path):
    """Questions of one to six pairs, an update each: how many it learns from tells which one it was."""
    many = [
        msgspec.structs.replace(PAIRS[0], query_id=f"q{size}", step=step, chosen_tokens=[20 + step, 21])
        for size in range(1, 7)
        for step in range(size)
    ]
    still = {"lr": 1e-12, "pairs": many, "batch_pairs": 1, "epochs": 2}
    reports = [train_tiny(tiny, tmp_path / f"{seed}", seed=seed, **still) for seed in (0, 1)]
    first, other = (weights_of(tmp_path / f"{seed}") for seed in (0, 1))
    begun = [name for name in first if "lora_A" in name]
    assert begun and not [name for name in begun if torch.allclose(first[name], other[name])]
    orders = [[row["pairs"] for row in report.curve] for report in reports]
    assert [sorted(order[:6]) for order in orders] == [[1, 2, 3, 4, 5, 6]] * 2
    assert orders[0] != orders[1]


@ONE_ARCHITECTURE
def test_the_first_gradient_is_that_of_the_mean_loss_by_hand(tiny, tmp_path):
    """Eq. 10 to 12 as they are written, each pair alone; the rejected ones gained more advantage, so that w counts."""
    pairs = [msgspec.structs.replace(p, rejected_advantage=0.3 * n, lead=1 / (n + 1)) for n, p in enumerate(PAIRS)]
    options = {"beta": 0.5, "alpha": 0.5}

    def by_hand(weight, lead) -> float:
        cfg = Learner(**SMALL | options)
        policy = load_policy(tiny.hf_checkpoint, None, cfg, "cpu", "fp32", seed_of(0, 1, "adapter"))
        losses = []
        for p in pairs:
            both = rows([(p.prompt_tokens, p.chosen_tokens), (p.prompt_tokens, p.rejected_tokens)])
            logps = response_logps(policy, both)
            chosen, rejected = logps - logps.detach()  # a new adapter is the base model
            losses.append(-lead(p) * logsigmoid(0.5 * (chosen - weight(p) * rejected)))
        torch.stack(losses).mean().backward()
        trained = [p.grad for p in policy.parameters() if p.requires_grad and p.grad is not None]
        return float(torch.cat([g.flatten() for g in trained]).norm())

    def w(p: PreferencePair) -> float:
        return min(math.exp(-(p.rejected_advantage - p.chosen_advantage) / 0.5), 1.0)

    report = train_tiny(tiny, tmp_path / "a", pairs=pairs, lr=1e-12, batch_pairs=100, **options)
    assert report.updates == 1
    assert report.curve[0]["grad_norm"] == pytest.approx(by_hand(w, lambda p: p.lead), rel=1e-3)
    for weight, lead in ((lambda p: 1.0, lambda p: p.lead), (w, lambda p: 1.0)):
        assert report.curve[0]["grad_norm"] != pytest.approx(by_hand(weight, lead), rel=0.02), "or this shows nothing"


@ONE_ARCHITECTURE
def test_longer_gradients_are_shortened_and_told_as_they_were(tiny, tmp_path):
    """To so little that Adam's epsilon (1e-8) outweighs them: then nothing is learned."""
    free, short = (train_tiny(tiny, tmp_path / f"{most}", max_grad_norm=most, epochs=2) for most in (1.0, 1e-12))
    assert short.curve[0]["grad_norm"] == pytest.approx(free.curve[0]["grad_norm"])
    assert free.curve[0]["grad_norm"] > 1e-6
    assert abs(short.margin) < 0.01 * free.margin


def test_weights_decay_by_the_rate():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], Learner(lr=0.1, weight_decay=0.5), "cpu")
    parameter.grad = torch.zeros(3)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([1 - 0.1 * 0.5] * 3)


@ONE_ARCHITECTURE
def test_accuracy_is_the_share_of_pairs_that_are_ranked_right(tiny, tmp_path):
    """Of four pairs one says the reverse of the three others."""
    one, other = [20, 21, 22], [30, 31]
    pairs = [
        PreferencePair(f"q{n}", 0, [10, 11], *((one, other) if n else (other, one)), 0.0, 0.0, -0.5, -0.6, True, True)
        for n in range(4)
    ]
    report = train_tiny(tiny, tmp_path / "a", pairs=pairs, batch_pairs=4, epochs=4)
    assert (report.accuracy, report.scored_pairs) == (0.75, 4)
    assert report.margin > 0


@ONE_ARCHITECTURE
def test_the_loss_is_that_of_the_last_epoch_each_pair_alike(tiny, tmp_path):
    report = train_tiny(tiny, tmp_path / "a", batch_pairs=4, epochs=2)
    *before, one, other = report.curve
    assert {one["pairs"], other["pairs"]} == {2, 4} and len(before) == 2
    assert report.loss == pytest.approx(sum(row["pairs"] * row["loss"] for row in (one, other)) / 6)
    assert report.loss != pytest.approx(sum(row["pairs"] * row["loss"] for row in report.curve) / 12)
