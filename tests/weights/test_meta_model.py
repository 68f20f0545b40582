from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import import_checkpoint
from tests.support.adapters import sampled_and_scored, torch_scores
from tests.support.models import tiny_gguf

PROMPTS = [[257, *range(i, i + 180), 258] for i in range(4)]  # long enough for slow frequencies to turn


def divisors(factor: float) -> np.ndarray:
    """As llama.cpp's converter makes them of a Llama 3.1 with 16 axes a head."""
    table = []
    for pair in range(8):
        wavelength = 2 * math.pi * 10000 ** (pair / 8)
        share = (8192 / wavelength - 1) / 3
        table.append(1 / ((1 - share) / factor + share) if 0 < share < 1 else 1.0 if share >= 1 else factor)
    return np.array(table, np.float32)


def llama3(writer):
    writer.add_tensor("rope_freqs.weight", divisors(8.0))


def linear(writer):
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_float32("llama.rope.scaling.factor", 4.0)


def unnamed(writer):
    writer.add_float32("llama.rope.scaling.factor", 4.0)


def under_its_older_name(writer):
    writer.add_float32("llama.rope.scale_linear", 4.0)


def yarn(writer):
    writer.add_string("llama.rope.scaling.type", "yarn")
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    writer.add_uint32("llama.rope.scaling.original_context_length", 64)


@pytest.mark.parametrize("more", [llama3, linear, unnamed, under_its_older_name, yarn])
def test_the_learner_turns_as_llama_cpp_does(more, tmp_path):
    original = tiny_gguf(tmp_path / "m.gguf", "llama", more=more)
    import_checkpoint(gguf_file.read(tmp_path / "m.gguf"), tmp_path / "hf-checkpoint", lambda n: None)
    hf_checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "hf-checkpoint", dtype=torch.float32)
    apart = {"hf-checkpoint": [], "unscaled": []}
    responses = sampled_and_scored(tmp_path / "m.gguf", PROMPTS, 40, context=512)
    for prompt, (response, scores) in zip(PROMPTS, responses, strict=True):
        for name, model in (("hf-checkpoint", hf_checkpoint), ("unscaled", original.eval())):
            apart[name].append(np.abs(torch_scores(model, prompt, response) - scores).mean())
    assert np.mean(apart["hf-checkpoint"]) < 0.01
    assert np.mean(apart["unscaled"]) > 0.03, "the scaling must matter for this to show anything"


def no_llama(writer):
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8).astype(np.float32))


def no_number(writer):
    writer.add_tensor("rope_freqs.weight", np.full(8, np.nan, np.float32))


def no_entry(writer):
    writer.add_tensor("rope_freqs.weight", np.zeros(0, np.float32))


def dynamic(writer):
    writer.add_string("llama.rope.scaling.type", "dynamic")
    writer.add_float32("llama.rope.scaling.factor", 4.0)


def by_length(writer):
    for name in ("long", "short"):
        writer.add_tensor(f"rope_factors_{name}.weight", np.ones(8, np.float32))


def attention(writer):
    writer.add_string("llama.rope.scaling.type", "yarn")
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    writer.add_float32("llama.rope.scaling.attn_factor", 1.5)


@pytest.mark.parametrize("more", [no_llama, no_number, no_entry, dynamic, by_length, attention])
def test_other_scaling_is_refused(more, tmp_path):
    tiny_gguf(tmp_path / "m.gguf", "llama", more=more)
    with pytest.raises(UserError, match="rotary frequencies"):
        import_checkpoint(gguf_file.read(tmp_path / "m.gguf"), tmp_path / "hf-checkpoint", lambda n: None)


def test_a_factor_of_nothing_is_none(tmp_path):
    tiny_gguf(tmp_path / "m.gguf", "llama", more=lambda writer: writer.add_float32("llama.rope.scaling.factor", 0.0))
    import_checkpoint(gguf_file.read(tmp_path / "m.gguf"), tmp_path / "hf-checkpoint", lambda n: None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf-checkpoint")
    assert loaded.config.rope_parameters["rope_type"] == "default"
