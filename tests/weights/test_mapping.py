from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import MAP_FILE
from genius_lite.weights.mapping import Place, TensorMap


def test_row_order_is_recovered(tiny):
    tensor_map = TensorMap.load(tiny.hf_checkpoint / MAP_FILE)
    permuted = {name for name, place in tensor_map.tensors.items() if place.rows is not None}
    q_and_k = {f"blk.{i}.attn_{x}.weight" for i in range(2) for x in "qk"}
    assert permuted == (q_and_k if tiny.architecture == "llama" else set())
    assert len(tensor_map.orders) == (2 if tiny.architecture == "llama" else 0)
    source, hf_checkpoint = gguf_file.read(tiny.gguf), load_file(tiny.hf_checkpoint / "model.safetensors")
    for tensor in source.tensors:
        if tensor.name in tensor_map.tensors and tensor_map.tensors[tensor.name].name in hf_checkpoint:
            ours = tensor_map.take(tensor.name, hf_checkpoint[tensor_map.tensors[tensor.name].name])
            assert np.array_equal(ours, source.dequantized(tensor).astype(np.float16))


@pytest.mark.parametrize("orders", [[], [[-1, 0]], [[0, 0]]])
def test_an_order_that_cannot_be_is_a_line(tmp_path, orders):
    """Python counted a negative row from the end, and the merge was another one without a word."""
    TensorMap({"a": Place("b", rows=0)}, orders).save(tmp_path / MAP_FILE)
    with pytest.raises(UserError, match="is missing, or damaged; delete"):
        TensorMap.load(tmp_path / MAP_FILE)
