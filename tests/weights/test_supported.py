from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.constants import MODEL_ARCH_NAMES

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import check_supported
from genius_lite.weights.supported import check_architecture, plain, readable
from tests.support.models import tiny_gguf

KNOWN = """apertus arcee bitnet chatglm cohere2 command-r deepseek2 ernie4_5 exaone4 falcon-h1 gemma gemma3n gemma4 glm4
glm4moe glm-dsa gptneox granite granitehybrid granitemoe hunyuan-dense hunyuan-moe jamba lfm2moe mamba2 mistral3
nemotron_h nemotron_h_moe olmo olmo2 olmoe phi2 phimoe qwen3next seed_oss smollm3 starcoder"""
UNKNOWN = "baichuan deci exaone grok minicpm rwkv7 t5 lloma general tokenizer umt5"


@pytest.mark.parametrize("name", KNOWN.split())
def test_of_what_transformers_has_but_not_from_a_gguf_the_original_weights_are_asked_for(name):
    assert name in MODEL_ARCH_NAMES.values()
    with pytest.raises(UserError, match=r"^m\.gguf: .*; set model\.weights to the original model's safetensors"):
        check_architecture(name, "m.gguf")


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_of_what_transformers_does_not_have_nothing_is_asked_for(name):
    with pytest.raises(UserError, match=f"`{name}` cannot be trained: transformers has no such language model") as e:
        check_architecture(name, "m.gguf")
    assert "model.weights" not in str(e.value)


def test_what_transformers_reads_is_taken_as_llama_cpp_spells_it():
    read = {plain(name) for name in readable()}
    taken = [name for name in MODEL_ARCH_NAMES.values() if plain(name) in read]
    assert {"llama", "qwen3moe", "qwen35", "gpt-oss", "minimax-m2"} < set(taken)
    for name in taken:
        check_architecture(name, "m.gguf")


def test_a_tensor_that_transformers_would_leave_out_is_not_left_out(tmp_path):
    """llama.cpp adds it, and the learner would train another model."""

    def biased(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.1.attn_q.bias", np.ones(64, np.float32))

    tiny_gguf(tmp_path / "m.gguf", "llama", more=biased)
    source = gguf_file.read(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"would leave out `blk\.1\.attn_q\.bias`; set model\.weights"):
        check_supported(source)
    check_supported(source, with_weights=True)
