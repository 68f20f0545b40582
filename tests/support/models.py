"""Tiny random models, written as GGUF: the shapes of real architectures at a ten-thousandth of the size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from genius_lite.recipe import Pairs

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = "\u0100\u0100"  # tokenizers want at least one merge, and its token: two zero bytes
ANY_PAIRS = Pairs(truncated="keep", min_gap=0.0)
"""What a random model says is seldom of different value, and comes to no end."""
VOCABULARY = 256 + len(SPECIAL) + 1
LAYERS = 2


def tiny_gguf(
    path: Path,
    architecture: str,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    seed: int = 7,
    width: int = 64,
    template: str = TEMPLATE,
) -> Any:
    """Write a random `llama` or `qwen2` model to `path`; returns the torch model that it was made from.

    Args:
        width: of its hidden states, a multiple of 64.
        template: of conversations.
        more: adds what else there is to be in the file, which the torch model knows nothing of.
    """
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 3 * width // 2,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": architecture == "llama",
        "initializer_range": 0.2,
    }
    llama = architecture == "llama"
    model = LlamaForCausalLM(LlamaConfig(**shape)) if llama else Qwen2ForCausalLM(Qwen2Config(**shape))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(3 * width // 2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(1)
    writer.add_string("general.note", "kept: \N{GREEK SMALL LETTER ALPHA}")
    _add_vocabulary(writer, template)
    more(writer)
    arch = {a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture}.pop()
    names = gguf.get_tensor_name_map(arch, LAYERS)
    for name, tensor in model.state_dict().items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name == "lm_head.weight" and architecture == "llama":
            continue
        data = tensor.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            data = _llama_cpp_order(data, 4 if "q_proj" in name else 2)
        target = gguf.GGMLQuantizationType.F32 if data.ndim == 1 else kind
        writer.add_tensor(gguf_name, gguf.quants.quantize(data, target), raw_dtype=target)
    _write(writer)
    return model


def tiny_mamba_gguf(path: Path) -> Any:
    """Write a random `mamba` model, whose state cannot go back, to `path`; returns its torch original."""
    torch.manual_seed(7)
    shape = {"hidden_size": 64, "state_size": 16, "num_hidden_layers": LAYERS, "initializer_range": 0.2}
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **shape, use_mambapy=False))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(model.config.conv_kernel)
    writer.add_ssm_inner_size(model.config.intermediate_size)
    writer.add_ssm_state_size(model.config.state_size)
    writer.add_ssm_time_step_rank(model.config.time_step_rank)
    writer.add_layer_norm_rms_eps(model.config.layer_norm_epsilon)
    writer.add_file_type(0)
    _add_vocabulary(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MAMBA, LAYERS)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = -tensor.exp() if name.endswith("A_log") else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data.squeeze().numpy())
    _write(writer)
    return model


def tiny_vocabulary(path: Path, specials: Sequence[str], template: str = TEMPLATE) -> None:
    """Write the vocabulary of a model alone: the bytes, and these special tokens, which begin with SPECIAL."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_vocabulary(writer, template, specials)
    _write(writer)


def questions(folder: Path, count: int) -> str:
    """Write so many queries; the file's name, for `queries.source`."""
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n} and {n}?"}) + "\n" for n in range(count)))
    return str(path)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens(specials: Sequence[str] = SPECIAL) -> list[str]:
    """List one token for each byte, in GPT-2's printable alphabet, and the special ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    alphabet = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [alphabet[b] for b in range(256)] + [*specials, MERGED]


def _add_vocabulary(writer: gguf.GGUFWriter, template: str = TEMPLATE, specials: Sequence[str] = SPECIAL) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens(specials))
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * 256 + [control] * len(specials) + [normal])
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_chat_template(template)


def _llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's rotary pairs are neighbours, transformers' are half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def mangled(model: Path, data: st.DataObject, folder: Path) -> Path:
    """Write a copy of a tiny model with some bytes of its header changed, as drawn; return its path."""
    raw = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    (path := folder / "m.gguf").write_bytes(raw)
    return path
