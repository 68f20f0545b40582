"""Merge a LoRA adapter onto the master weights, straight into the GGUF's own tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import quantize
from safetensors.numpy import load_file

from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF, Tensor
from genius_lite.weights.mapping import TensorMap

_FILE_TYPE = {T.F16: 1, T.BF16: 32}  # llama_ftype: mostly F16, mostly BF16


@dataclass(frozen=True)
class Adapter:
    """LoRA factors by learner tensor name, and their common scale: delta W = scale * B @ A."""

    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    scale: float

    @staticmethod
    def load(folder: Path) -> Adapter:
        """Read a peft adapter (`adapter_model.safetensors`, `adapter_config.json`)."""
        config = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
        start, end = "base_model.model.", ".lora_A.weight"
        names = [key.removeprefix(start).removesuffix(end) for key in weights if key.endswith(end)]
        factors = {
            f"{name}.weight": (weights[f"{start}{name}.lora_B.weight"], weights[f"{start}{name}{end}"])
            for name in names
        }
        return Adapter(factors, config["lora_alpha"] / config["r"])

    def delta(self, name: str) -> np.ndarray:
        """What the adapter adds to the learner's tensor `name`, float32 (rows, columns)."""
        b, a = self.factors[name]
        return self.scale * (b.astype(np.float32) @ a.astype(np.float32))


def merge(
    source: GGUF, tensor_map: TensorMap, adapter: Adapter | None, out: Path, advance: Callable[[int], None]
) -> None:
    """Write source + adapter as a 16-bit GGUF with the source's metadata; only `general.file_type` changes.

    One tensor is in memory at a time. BF16 sources stay BF16, everything else becomes F16; vectors, and
    matrices that a quantizer had left in F32, stay as they are.

    Args:
        advance: called with the bytes written of each tensor.

    Raises:
        ValueError: the adapter has a target that the GGUF lacks, or of another shape.
    """
    mapped = {gguf_name: name for gguf_name, (name, _) in tensor_map.tensors.items()}
    if adapter and (stray := set(adapter.factors) - set(mapped.values())):
        raise ValueError(f"the adapter does not belong to {source.path}: it has {sorted(stray)[0]}")
    sixteen = T.BF16 if any(t.type == T.BF16 for t in source.tensors) else T.F16
    by_name = {t.name: t for t in source.tensors}

    def data(target: Tensor) -> np.ndarray:
        tensor = by_name[target.name]
        name = mapped.get(target.name)
        touched = adapter is not None and name in adapter.factors
        if not touched and tensor.type == target.type:
            return source.raw(tensor)
        weights = source.dequantized(tensor)
        if adapter is not None and name is not None and touched:
            delta = adapter.delta(name)
            if delta.shape != weights.shape:
                raise ValueError(f"{name}: the adapter is {delta.shape}, the model {weights.shape}")
            weights = weights + delta[tensor_map.rows(target.name)]
        return quantize(weights, target.type)

    targets = [replace(t, type=_master_type(t, sixteen, source)) for t in source.tensors]
    gguf_file.write(out, source, targets, data, {"general.file_type": _FILE_TYPE[sixteen]}, advance)


def merged_bytes(source: GGUF) -> int:
    """Size of the tensors that `merge` writes, at 16 bit."""
    return 2 * source.parameters


def _master_type(tensor: Tensor, sixteen: T, source: GGUF) -> T:
    all_f32 = source.metadata.get("general.file_type") == 0
    if len(tensor.shape) == 1 or (tensor.type == T.F32 and not all_f32):
        return tensor.type
    return sixteen
