"""What a GGUF takes in memory, from its header alone. All sizes in bytes."""

from __future__ import annotations

from collections import Counter

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import block_of


def kv_bytes(source: GGUF, kind: str) -> int:
    """Return the KV cache of one token in one layer; too much for models that share or skip it in some layers."""
    if not (heads := source.own("attention.head_count")):
        return 0  # a recurrent model: its state has the same size for any number of tokens
    kv_heads = source.own("attention.head_count_kv", heads)
    width = source.own("embedding_length") // heads
    elements = kv_heads * (source.own("attention.key_length", width) + source.own("attention.value_length", width))
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return -(-elements * block_bytes // per_block)


def layer_bytes(source: GGUF) -> tuple[int, int, int]:
    """Return the number of layers, the weights of the largest, and the weights of everything outside them."""
    sizes = Counter[int | None]()
    for tensor in source.tensors:
        sizes[block_of(tensor.name)] += tensor.nbytes
    outside = sizes.pop(None, 0)
    return len(sizes), max(sizes.values()), outside
