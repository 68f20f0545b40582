"""The importance of columns as llama.cpp's tools read it, and the adapter that llama.cpp applies by itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from genius_lite.learner.model import load_policy, response_logps
from genius_lite.learner.packing import rows
from genius_lite.learner.reference import Importance
from genius_lite.recipe import Learner
from genius_lite.sampler.llama import EngineError
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import read_imatrix, write_imatrix, write_lora
from genius_lite.weights.importing import MAP_FILE, Base
from genius_lite.weights.mapping import Place, TensorMap
from tests.support.adapters import random_adapter, torch_scores
from tests.support.c_array import as_c_array
from tests.support.engine import PROMPT
from tests.support.scoring import RESPONSE, scored


def test_importance_is_the_mean_square_of_what_flows_in(tiny, tmp_path):
    policy = load_policy(tiny.hf_checkpoint, None, Learner(rank=4), "cpu", "fp32", 0)
    importance, seen = Importance(policy), []
    layer = policy.get_base_model().model.layers[1].mlp.down_proj
    layer.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad(), policy.disable_adapter(), importance.watched():
        response_logps(policy, rows([([5, 6], [7, 8]), ([9, 5], [6, 5])]))
        response_logps(policy, rows([([5], [7])]))
    importance.save(tmp_path / "i.safetensors")
    tensor_map = TensorMap.load(tiny.hf_checkpoint / MAP_FILE)
    write_imatrix(tmp_path / "i.safetensors", tensor_map, "responses", tmp_path / "i.gguf")
    matrix = read_imatrix(tmp_path / "i.gguf")
    expected = torch.cat([x.flatten(0, -2) for x in seen]).square().mean(0).numpy()
    assert len(torch.cat([x.flatten(0, -2) for x in seen])) == 10
    np.testing.assert_allclose(matrix["blk.1.ffn_down.weight"], expected, rtol=1e-5)
    assert len(matrix) == 2 * 7
    before = len(seen)
    with policy.disable_adapter():  # with it the product is one with its gate, and asks no hook
        response_logps(policy, rows([([5], [7])]))
    assert (len(seen), importance.tokens) == (before + 1, 10)  # not watched any more


def test_the_file_reads_back_as_an_independent_reader_sees_it(tiny, tmp_path):
    tensor_map = TensorMap.load(tiny.hf_checkpoint / MAP_FILE)
    name = tensor_map.tensors["blk.0.attn_k.weight"].name
    sums = np.arange(1, 65, dtype=np.float32)
    save_file({name: sums, "tokens": np.array(10)}, tmp_path / "sums.safetensors")
    write_imatrix(tmp_path / "sums.safetensors", tensor_map, "responses", tmp_path / "i.gguf")
    read = gguf.GGUFReader(tmp_path / "i.gguf")
    assert read.fields["general.type"].contents() == "imatrix"
    assert read.fields["imatrix.datasets"].contents() == ["responses"]
    tensors = {t.name: t.data for t in read.tensors}
    assert tensors.keys() == {"blk.0.attn_k.weight.in_sum2", "blk.0.attn_k.weight.counts"}
    assert np.array_equal(tensors["blk.0.attn_k.weight.in_sum2"], sums[None])
    assert tensors["blk.0.attn_k.weight.counts"].tolist() == [[10]]
    ours = read_imatrix(tmp_path / "i.gguf")
    assert ours.keys() == {"blk.0.attn_k.weight"}
    np.testing.assert_allclose(ours["blk.0.attn_k.weight"], sums / 10, rtol=1e-6)


def test_no_column_matters_nothing(tiny, tmp_path):
    """Of a block that does not, llama.cpp writes zeros; of a matrix that does not, nothing is known."""
    tensor_map = TensorMap.load(tiny.hf_checkpoint / MAP_FILE)
    some, none = (tensor_map.tensors[f"blk.0.{name}.weight"].name for name in ("attn_k", "attn_q"))
    sums = np.zeros(64, np.float32)
    sums[:32] = 10.0
    save_file({some: sums, none: 0 * sums, "tokens": np.array(10)}, tmp_path / "sums.safetensors")
    write_imatrix(tmp_path / "sums.safetensors", tensor_map, "responses", tmp_path / "i.gguf")
    read = read_imatrix(tmp_path / "i.gguf")
    assert read.keys() == {"blk.0.attn_k.weight"}
    np.testing.assert_allclose(read["blk.0.attn_k.weight"], [1.0] * 32 + [1e-6] * 32, rtol=1e-5)


def test_the_quantizers_array_ends_with_an_entry_without_a_name():
    matrix = {"a.weight": np.arange(3, dtype=np.float32), "b.weight": np.ones(2, np.float64)}
    array, _kept = as_c_array(matrix)
    assert isinstance(array[0], llama_cpp.llama_model_imatrix_data)
    assert [(entry.name, entry.size) for entry in array] == [(b"a.weight", 3), (b"b.weight", 2), (None, 0)]
    for entry, values in zip(array, matrix.values(), strict=False):
        assert np.ctypeslib.as_array(
            ctypes.cast(entry.data, ctypes.POINTER(ctypes.c_float)), (entry.size,)
        ).tolist() == (values.tolist())


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


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts Linux's way")
def test_reading_importance_keeps_no_file_open(tmp_path, monkeypatch):
    """A view of each tensor did: of 420 there were 428 descriptors at once, and macOS lets a process have 256."""
    sums = {f"m{n}": np.ones(64, dtype=np.float32) for n in range(20)}
    places = {f"blk.{n}.attn_q.weight": Place(f"m{n}") for n in range(20)}
    save_file({**sums, "tokens": np.array(5.0, dtype=np.float32)}, tmp_path / "sums.safetensors")
    write_imatrix(tmp_path / "sums.safetensors", TensorMap(places, []), "x", tmp_path / "i.gguf")
    most, real = 0, gguf_file.GGUF.dequantized

    def watched(self, tensor):
        nonlocal most
        found = real(self, tensor)
        most = max(most, len([*Path("/proc/self/fd").iterdir()]))
        return found

    monkeypatch.setattr(gguf_file.GGUF, "dequantized", watched)
    before = len([*Path("/proc/self/fd").iterdir()])
    assert len(read_imatrix(tmp_path / "i.gguf")) == 20
    assert most < before + 5
