"""The numbers of a model that memory and time depend on, from its GGUF's header alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from genius_lite.recipe import Learner
from genius_lite.weights.footprint import layer_bytes
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor

_TABLES = ("token_embd.weight", "output.weight")
# The learner's names of layers, as recipes use them, and what GGUF calls them.
_GGUF_NAME = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    `tensor_bytes` is the file's, without its header; `tables` counts the weights of embeddings and head (one matrix
    where they are tied), `matrices` those of all others, `vectors` the rest. `largest` is the one whose conversion
    takes the most memory. `recurrent` models have no KV cache, and cannot share prefixes.
    """

    parameters: int
    tensor_bytes: int
    layers: int
    width: int
    inner: int
    vocabulary: int
    tables: int
    matrices: int
    vectors: int
    largest: Tensor
    adapted: dict[str, int]  # rows + columns of all matrices of a name: what one rank of an adapter has of numbers
    recurrent: bool

    @staticmethod
    def of(source: GGUF) -> Shape:
        """Of a model whose header was checked."""

        def count(name: str, default: int = 0) -> int:
            return source.count(f"{source.architecture}.{name}") or default

        tables = [t for t in source.tensors if t.name in _TABLES]
        inside = [t for t in source.tensors if len(t.shape) > 1 and t.name not in _TABLES]
        width, heads = count("embedding_length"), count("attention.head_count")
        return Shape(
            parameters=source.parameters,
            tensor_bytes=sum(t.nbytes for t in source.tensors),
            layers=layer_bytes(source)[0],
            width=width,
            inner=_inner(count) or 4 * width,
            vocabulary=max(t.shape[0] for t in tables),
            tables=sum(t.rows * t.columns for t in tables),
            matrices=sum(t.rows * t.columns for t in inside),
            vectors=sum(t.columns for t in source.tensors if len(t.shape) == 1),
            largest=max(source.tensors, key=lambda t: t.rows * t.columns),
            adapted=_adapted(inside),
            recurrent=not heads,
        )

    @property
    def tied(self) -> bool:
        """Whether the embeddings are the head too."""
        return self.tables < 2 * self.vocabulary * self.width

    def adapter_weights(self, cfg: Learner) -> int:
        """Trainable numbers: `rank` for each row and each column of an adapted matrix."""
        wanted = None if cfg.targets == "auto" else {_GGUF_NAME.get(name, name) for name in cfg.targets}
        return cfg.rank * sum(size for name, size in self.adapted.items() if wanted is None or name in wanted)


def _inner(count: Callable[[str, int], int]) -> int:
    """Width of the feed-forward layers that one token goes through; of experts those that are used together."""
    dense = count("feed_forward_length", 0)
    if used := count("expert_used_count", 0):
        return used * count("expert_feed_forward_length", dense) + count("expert_shared_feed_forward_length", 0)
    return dense


def _adapted(matrices: list[Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in (t for t in matrices if len(t.shape) == 2):
        if found := re.fullmatch(r"blk\.\d+\.(\w+)\.weight", tensor.name):
            sizes[found[1]] = sizes.get(found[1], 0) + sum(tensor.shape)
    return sizes
