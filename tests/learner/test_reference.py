from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from genius_lite.learner.model import response_logps
from genius_lite.learner.packing import rows, trees
from genius_lite.learner.reference import Importance

SHORT, LONG = ([5, 6, 7], [*range(20, 30)]), ([5, 6, 7], [*range(40, 140)])


class Policy:
    def __init__(self):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        self.base = LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape, **heads)).eval()

    def get_base_model(self):
        return self.base


def test_padding_is_no_token_of_the_importance():
    """A row of a short response beside a long one is mostly padding."""

    def gathered(*packs) -> Importance:
        importance = Importance(policy)
        with importance.watched(), torch.no_grad():
            for inputs in packs:
                response_logps(policy, inputs)
        return importance

    policy = Policy()
    apart, packed = gathered(rows([SHORT]), rows([LONG])), gathered(rows([SHORT, LONG]))
    assert apart.tokens == packed.tokens == 13 + 103
    for name, sums in apart.sums.items():
        assert packed.sums[name].tolist() == pytest.approx(sums.tolist(), rel=1e-4), name
    assert gathered(trees([[SHORT, LONG]])).tokens == 3 + 10 + 100
