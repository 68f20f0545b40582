"""The sizes of a model, from its GGUF's header alone, and of this machine, as it is now."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from genius_lite.hardware.device import Device, compute_in_bf16, learner_device, learner_free_memory
from genius_lite.hardware.gpus import Gpu, gpus
from genius_lite.hardware.system import cores, free_memory, memory_held
from genius_lite.recipe import Learner
from genius_lite.rundir.disk import free_disk
from genius_lite.weights.footprint import layer_bytes
from genius_lite.weights.gguf_file import EMBEDDINGS, GGUF

_TABLES = (EMBEDDINGS, "output.weight")
# The learner's names of layers, as recipes use them, and what GGUF calls them.
_GGUF_NAME = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What memory depends on.

    `tensor_bytes` is the file's, without its header; `tables` counts the weights of embeddings and head (one matrix
    where they are tied), `matrices` those of all others, `vectors` the rest, `largest` those of the largest of all.
    `adapted` are rows + columns of all matrices of a name: what one rank of an adapter has of numbers. `recurrent`
    models have no KV cache, and cannot share prefixes.
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
    largest: int
    adapted: Mapping[str, int]
    recurrent: bool

    @staticmethod
    def of(source: GGUF) -> Shape:
        """Read a model's sizes; its header was checked before."""
        tables = [t for t in source.tensors if t.name in _TABLES]
        inside = [t for t in source.tensors if len(t.shape) > 1 and t.name not in _TABLES]
        width, inner, adapted = source.own("embedding_length"), source.own("feed_forward_length"), Counter[str]()
        if used := source.own("expert_used_count"):  # of experts those count that one token goes through
            each = source.own("expert_feed_forward_length") or inner
            inner = used * each + source.own("expert_shared_feed_forward_length")
        for tensor in inside:
            if len(tensor.shape) == 2 and (found := re.fullmatch(r"blk\.\d+\.(\w+)\.weight", tensor.name)):
                adapted[found[1]] += sum(tensor.shape)
        return Shape(
            parameters=source.parameters,
            tensor_bytes=sum(t.nbytes for t in source.tensors),
            layers=layer_bytes(source)[0],
            width=width,
            inner=inner or 4 * width,
            vocabulary=source.vocabulary,
            tables=sum(t.rows * t.columns for t in tables),
            matrices=sum(t.rows * t.columns for t in inside),
            vectors=sum(t.columns for t in source.tensors if len(t.shape) == 1),
            largest=max(t.rows * t.columns for t in source.tensors),
            adapted=adapted,
            recurrent=not source.own("attention.head_count"),
        )

    @property
    def tied(self) -> bool:
        return self.tables < 2 * self.vocabulary * self.width

    def adapter_weights(self, cfg: Learner) -> int:
        """Count the trainable numbers: `rank` for each row and each column of an adapted matrix."""
        wanted = None if cfg.targets == "auto" else {_GGUF_NAME.get(name, name) for name in cfg.targets}
        return cfg.rank * sum(size for name, size in self.adapted.items() if wanted is None or name in wanted)


@dataclass(frozen=True)
class Machine:
    """Hold what there is to be filled, in free bytes, and what decides how it is used.

    `memory` is what a run may take of the main memory: what is free and what this process, which becomes the run, holds
    already. `learner_memory` is that of the learner's device, and equal to it on a CPU. `bf16` says whether that device
    multiplies bf16 natively.
    """

    memory: int
    disk: int
    gpus: list[Gpu]
    device: Device
    learner_memory: int
    bf16: bool
    cores: int

    @staticmethod
    def here(folder: Path) -> Machine:
        """Inspect this machine, with the disk that `folder` is or will be on."""
        device, memory = learner_device(), free_memory() + memory_held()[0]
        learner_memory = memory if device == "cpu" else learner_free_memory(device)
        bf16 = compute_in_bf16(device)
        return Machine(memory, free_disk(folder), gpus(), device, learner_memory, bf16, cores())

    @property
    def gpu_memory(self) -> int:
        return sum(gpu.free for gpu in self.gpus)
