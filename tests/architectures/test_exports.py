"""What comes of a training, of every family, says what the learner's model says: GGUF, LoRA file, safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genius_lite.errors import UserError
from genius_lite.export.transformers import merged_model, write_safetensors
from genius_lite.sampler.engine import Engine
from genius_lite.sampler.messages import EngineSettings, Score
from genius_lite.weights.adapter import Adapter, write_lora
from genius_lite.weights.merge import merge
from tests.architectures.agreement import MATTERS, MERGED, apart, by_learner, by_sampler
from tests.architectures.independent import by_transformers
from tests.architectures.zoo import TEXT
from tests.support.engine import drain

ROUNDED = 0.3  # nats a token that Q8_0 may change of random weights, whose rounding matters more than that of real ones
TOLD = 0.9  # of the tokens, those that differ least: experts that rounding chooses answer some of them otherwise


def test_a_quantized_file_is_near_the_exact_one(model, tmp_path):
    kept = merge(model.base, Adapter.load(model.adapter, model.base), "Q8_0", tmp_path / "q8_0.gguf")
    assert kept.share == pytest.approx(1, abs=0.02)
    found = by_sampler(tmp_path / "q8_0.gguf")
    assert np.isfinite(found).all()
    assert mostly_apart(found, by_sampler(model.merged[0])) < ROUNDED


def test_the_adapter_at_run_time_is_the_merged_file(model, tmp_path):
    write_lora(model.base, model.adapter, tmp_path / "lora.gguf")
    found = with_lora(model.base.gguf.path, tmp_path / "lora.gguf")
    assert mostly_apart(found, by_sampler(model.merged[0])) < MERGED
    assert apart(found, by_sampler(model.base.gguf.path)) > MATTERS


def test_the_safetensors_are_the_learners_model(model, tmp_path):
    write_safetensors(model.base, model.adapter, tmp_path)
    found = by_transformers(tmp_path, {})
    assert mostly_apart(found, by_learner(model.policy)) < MERGED


def test_no_update_is_left_out_of_the_safetensors(imported):
    """The files of Gemma 3 with a tower have other names than its parameters, and so has another model."""
    with pytest.raises(UserError, match=r"does not belong to .*, which has no model\.layers\.0\."):
        merged_model(imported("gemma3-vision").base, imported("llama").adapter)


def mostly_apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.sort(np.abs(ours - theirs))[: int(TOLD * len(ours))].mean())


def with_lora(path: Path, lora: Path) -> np.ndarray:
    settings = EngineSettings(1, context=512, threads=1, flash_attention=False, kv_type="F32", lora=str(lora))
    engine = Engine(str(path), settings)
    engine.submit(Score(0, TEXT[:1], TEXT[1:]))
    return np.array(drain(engine)[0].logprobs)
