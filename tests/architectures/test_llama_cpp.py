"""Do llama.cpp and transformers compute the same model? Nothing of genius-lite is in it, so that its own tests may rest
on it. In fp32 throughout, where the two leave no more room than the order of sums, and llama.cpp's table for GELU.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.architectures.independent import by_llama_cpp, by_transformers, opened
from tests.architectures.zoo import ARCHITECTURES, WINDOW

NATS = 0.002  # a token, on average
NOTICED = 0.02  # what issues allow between sampler and learner


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_computes_what_transformers_does(zoo, name):
    path = zoo / f"{name}.gguf"
    assert path.is_file(), (zoo / "converter.log").read_text()
    model = opened(path)
    assert model.metadata["general.architecture"] == ARCHITECTURES[name].gguf
    theirs = by_transformers(zoo / name, ARCHITECTURES[name].as_llama_cpp)
    assert np.abs(by_llama_cpp(model) - theirs).mean() < NATS


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("gemma2", {"sliding_window": 2 * WINDOW}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 2 * WINDOW}),
        ("gemma4", {"final_logit_softcapping": None}),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite4", {"attention_multiplier": 1.0}),
        ("granitehybrid", {"position_embedding_type": "rope"}),
        ("gpt-oss", {"sliding_window": 256}),
    ],
)
def test_what_a_family_has_of_its_own_shows_in_these_models(zoo, name, wrong):
    """Otherwise an importer that overlooks it would pass."""
    right = by_transformers(zoo / name, {})
    assert np.abs(by_transformers(zoo / name, wrong) - right).mean() > NOTICED
