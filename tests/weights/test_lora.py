"""The adapter that llama.cpp applies by itself, beside the one that is merged."""

from __future__ import annotations

import numpy as np
import pytest

from genius_lite.sampler.llama import EngineError
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import Base
from genius_lite.weights.lora import write_lora
from tests.support.adapters import random_adapter, torch_scores
from tests.support.engine import PROMPT
from tests.support.scoring import RESPONSE, scored


def test_llama_cpp_with_the_adapter_equals_torch(tiny, tmp_path):
    policy = random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.05)
    base = Base(gguf_file.read(tiny.gguf), tiny.hf_checkpoint)
    write_lora(base, tmp_path / "adapter", tmp_path / "lora.gguf")
    expected, plain = torch_scores(policy, PROMPT, RESPONSE), scored(tiny.gguf)
    assert np.abs(scored(tiny.gguf, tmp_path / "lora.gguf") - expected).mean() < 0.01
    assert np.abs(plain - expected).mean() > 0.1, "the adapter must matter for this to show anything"


def test_an_adapter_that_does_not_fit_is_refused(tiny, tmp_path):
    (tmp_path / "lora.gguf").write_bytes(tiny.gguf.read_bytes())
    with pytest.raises(EngineError, match="cannot load the adapter"):
        scored(tiny.gguf, tmp_path / "lora.gguf")
