"""On an NVIDIA GPU, with torch and llama.cpp built for it: `pytest -m gpu -n 0 tests/gpu`.

What is computed there is what the CPU computes, and what training keeps of itself is enough to go on from.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from genius_lite.errors import Stop, Stopped
from genius_lite.hardware.gpus import gpus
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.recipe import Foresight, Learner, Model, Queries, Recipe, Sampler
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import run
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import Extend, Sampling, Score, Scored
from genius_lite.weights import gguf_file
from tests.conftest import SMOLLM2
from tests.support.adapters import torch_scores
from tests.support.drawing import SAMPLINGS, both, mixed
from tests.support.engine import PROMPT, drain, extend, settings
from tests.support.models import ANY_PAIRS, VOCABULARY
from tests.support.training import train_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
    pytest.mark.skipif(not gpus(), reason="llama.cpp was built without CUDA"),
]

LEARNER = {"lr": 1e-2, "batch_pairs": 2, "rank": 64, "lora_alpha": 64, "epochs": 3}


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("flash", [False, None])
def test_logprobs_are_the_models(tiny, unified, flash):
    """Of branches that were forked, evicted and decoded beside others, and of the same tokens scored."""
    engine = Engine(str(tiny.gguf), settings(slots=3, kv_unified=unified, flash_attention=flash, gpu_layers=-1))
    for other in range(3):
        engine.submit(Extend(50 + other, [*PROMPT, other], [other, 7], "end", 9, Sampling(0.9)))
    for completion in extend(engine, PROMPT, list(range(6)), limit=20):
        expected = torch_scores(tiny.model, PROMPT, completion.tokens)
        assert np.abs(np.array(completion.logprobs) - expected).max() < 0.05  # F16 products, summed in F16
        engine.submit(Score(9, PROMPT, completion.tokens))
        (scored,) = (r for r in drain(engine) if isinstance(r, Scored))
        assert np.abs(np.array(scored.logprobs) - expected).max() < 0.05


def test_a_quantized_model_says_there_what_it_says_here(smollm2):
    """As nearly as the CPU's own two ways of computing agree: 0.05 nats a token."""
    here = Engine(str(smollm2), settings(slots=2, gpu_layers=0, flash_attention=None))
    (sampled,) = extend(here, list(range(100, 140)), [3], until="limit", limit=100)
    there = Engine(str(smollm2), settings(slots=2, gpu_layers=-1, flash_attention=None))
    there.submit(Score(1, list(range(100, 140)), sampled.tokens))
    (scored,) = (r for r in drain(there) if isinstance(r, Scored))
    assert np.abs(np.array(scored.logprobs) - sampled.logprobs).mean() < 0.1


def assert_drawn_alike(host, there, share: float, nats: float):
    """So many responses have the same tokens: in the others a draw fell next to a bound, which rounding moved. Until
    then, and where tokens are given, log-probabilities are no further apart."""
    same = [one.tokens == other.tokens for one, other in zip(host[0], there[0], strict=True)]
    assert sum(same) >= share * len(same)
    for one, other in zip(host[0], there[0], strict=True):
        until = [*(a == b for a, b in zip(one.tokens, other.tokens, strict=False)), False].index(False)
        assert other.logprobs[:until] == pytest.approx(one.logprobs[:until], abs=nats)
    for one, other in zip(host[1], there[1], strict=True):
        assert other == pytest.approx(one, abs=nats)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("samplings", [SAMPLINGS[:3], SAMPLINGS], ids=["plain", "filtered"])
def test_it_draws_what_the_host_draws(tiny, samplings, unified):
    """Of rows that are computed there: branches, forked and evicted, and responses that are scored."""
    requests, options = mixed(samplings, VOCABULARY), {"slots": 5, "parked": 2, "prefill_chunk": 16}
    options |= {"kv_unified": unified, "gpu_layers": -1, "flash_attention": None}
    assert_drawn_alike(*both(tiny.gguf, requests, **options), share=0.9, nats=0.05)


def test_it_draws_from_a_real_vocabulary_what_the_host_draws(smollm2):
    """Without a filter, as it may not sort so many tokens. Quantized products of other batches differ by more."""
    requests = mixed([Sampling(0.6), Sampling(0.3)], 49152, limit=8)
    assert_drawn_alike(*both(smollm2, requests, slots=16, gpu_layers=-1, flash_attention=None), share=0.7, nats=0.3)


def test_all_layers_go_to_the_gpu_by_themselves(smollm2):
    chosen = engine_settings(
        Sampler(slots=8), gguf_file.read(smollm2), 256, TerminalProgress(Console(file=io.StringIO()))
    )
    assert chosen.gpu_layers == -1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_training_prefers_the_chosen_and_goes_on_where_it_was_stopped(tiny, tmp_path, precision, optimizer):
    options = {**LEARNER, "device": "cuda", "precision": precision, "optimizer": optimizer}
    stop = Stop()

    def updated(number, row):
        stop.asked = number == 4

    whole = train_tiny(tiny, tmp_path / "whole", **options)
    assert (whole.device, whole.precision) == ("cuda", precision)
    assert whole.margin > 1
    with pytest.raises(Stopped):
        train_tiny(tiny, tmp_path / "parts", updated=updated, stop=stop, **options)
    parts = train_tiny(tiny, tmp_path / "parts", **options)
    assert parts.updates == len(parts.curve) == whole.updates
    # Sums are made in another order each time there: to four digits, not to the bit.
    assert [row["loss"] for row in parts.curve] == pytest.approx([row["loss"] for row in whole.curve], abs=0.02)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(a[k], b[k], atol=2e-2) for k in a)


def test_a_tree_costs_no_other_score_than_its_branches(smollm2_master):
    """Of the real model, in the precision that a GPU computes in."""
    from genius_lite.learner.model import load_policy, response_logps, takes_trees
    from genius_lite.learner.packing import Response, rows, trees

    policy = load_policy(smollm2_master, None, Learner(), "cuda", "bf16", seed=0)
    assert takes_trees(policy, 100)
    stem = list(range(200, 260))
    responses: list[Response] = [(stem, [300 + i, *range(310, 330)]) for i in range(4)]
    with torch.no_grad():
        ours, alone = response_logps(policy, trees([responses])), response_logps(policy, rows(responses))
    assert ours.cpu().numpy() == pytest.approx(alone.cpu().numpy(), abs=1.5)  # nats, of some 200


def test_gradients_are_finite_where_cudnns_are_not(smollm2_master):
    """Scores far below zero under a mask whose length is 64 beyond a multiple of 128: pytorch issue 196678."""
    from genius_lite.learner.model import load_base

    load_base(smollm2_master, "cuda", "bf16")
    q, k = (torch.full((1, 1, 192, 64), value, dtype=torch.bfloat16, device="cuda") for value in (1.0, -16.0))
    q.requires_grad_()
    seen = torch.ones(192, 192, dtype=torch.bool, device="cuda").tril()
    torch.nn.functional.scaled_dot_product_attention(q, k, torch.randn_like(k), attn_mask=seen).sum().backward()
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_run_samples_and_trains_there(smollm2, tmp_path, precision):
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=SMOLLM2),
        queries=Queries(source="recipes/quickstart-queries.jsonl", limit=4),
        rounds=2,
        foresight=Foresight(candidates=3, steps=2, max_tokens=60),
        pairs=ANY_PAIRS,
        learner=Learner(lr=2e-4, batch_pairs=2, precision=precision, parity_limit=1.0 if precision == "nf4" else 0.3),
        sampler=Sampler(slots=16),
    )
    summary = run(recipe, TerminalProgress(Console(file=io.StringIO())))
    trained = [json.loads((tmp_path / "run" / f"round-{n}" / "adapter" / "train.json").read_text()) for n in (1, 2)]
    assert [t["device"] for t in trained] == ["cuda", "cuda"]
    assert [t["precision"] for t in trained] == [precision, precision]
    assert trained[0]["margin"] > 0.05
    assert [r.rollouts.queries for r in summary.rounds if r.rollouts] == [4, 4]
