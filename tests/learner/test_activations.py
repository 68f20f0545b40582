from __future__ import annotations

import pytest
import transformers

from genius_lite.learner.activations import inner_width


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(intermediate_size=96), 96),
        (transformers.Gemma3nTextConfig(num_hidden_layers=2, intermediate_size=[96, 128]), 128),
        (transformers.GptOssConfig(num_experts_per_tok=4, intermediate_size=96), 4 * 96),
        (transformers.MixtralConfig(num_experts_per_tok=2, intermediate_size=96), 2 * 96),
        (
            transformers.Qwen2MoeConfig(
                num_experts_per_tok=4,
                moe_intermediate_size=24,
                shared_expert_intermediate_size=48,
                intermediate_size=96,
            ),
            4 * 24 + 48,
        ),
        (
            transformers.DeepseekV3Config(
                num_experts_per_tok=8, moe_intermediate_size=24, n_shared_experts=2, intermediate_size=96
            ),
            8 * 24 + 2 * 24,
        ),
    ],
    ids=lambda value: value.model_type if isinstance(value, transformers.PretrainedConfig) else "",
)
def test_the_units_that_a_token_goes_through(config, expected):
    assert inner_width(config) == expected
