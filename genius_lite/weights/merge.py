"""Merge a LoRA adapter onto the base model, straight into the GGUF's own tensors."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.quants import quantize
from safetensors.numpy import load_file

from genius_lite.errors import UserError
from genius_lite.hardware import cores
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.gguf_header import Tensor
from genius_lite.weights.importing import Base

BASE_FILE = "base.json"  # beside an adapter: the SHA-256 of the GGUF that it was trained on
_THREADS = 8  # that dequantize at once; each has some 10 MB in memory
_FILE_TYPE = {T.F16: 1, T.BF16: 32}  # llama_ftype: mostly F16, mostly BF16


@dataclass(frozen=True)
class Adapter:
    """LoRA factors by GGUF tensor name, rows in the GGUF's order, and their scale: delta W = alpha / rank * B @ A."""

    factors: dict[str, tuple[np.ndarray, np.ndarray]]  # B (rows, rank) and A (rank, columns), float32
    alpha: float
    rank: int

    @staticmethod
    def load(folder: Path, base: Base) -> Adapter:
        """Read a peft adapter (`adapter_model.safetensors`, `adapter_config.json`) of this base.

        Raises:
            UserError: it was trained on another model: the hash beside it, a name or a shape tells.
        """
        recorded = folder / BASE_FILE
        if recorded.exists() and json.loads(recorded.read_text())["sha256"] != base.sha256:
            raise UserError(f"{folder} was trained on another model than {base.gguf.path}; it cannot be merged onto it")
        theirs, alpha, rank = read_factors(folder)
        tensor_map = base.tensor_map
        gguf_names = {name: gguf_name for gguf_name, (name, _) in tensor_map.tensors.items()}
        shapes = {t.name: t.shape for t in base.gguf.tensors}
        factors = {}
        for name, (b, a) in theirs.items():
            gguf_name = gguf_names.get(name)
            if gguf_name is None:
                raise UserError(f"{folder} does not belong to {base.gguf.path}, which has no {name}")
            if (shape := (len(b), a.shape[1])) != shapes[gguf_name]:
                raise UserError(
                    f"{folder} does not belong to {base.gguf.path}: it has {name} as {shape}, not {shapes[gguf_name]}"
                )
            factors[gguf_name] = (b[tensor_map.rows(gguf_name)], a)
        return Adapter(factors, alpha, rank)

    def delta(self, name: str, rows: slice) -> np.ndarray:
        """What the adapter adds to some rows of the GGUF's tensor `name`, float32 (rows, columns)."""
        b, a = self.factors[name]
        return (b[rows] * np.float32(self.alpha / self.rank)) @ a


def read_factors(folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, int]:
    """B and A (float32) of a peft adapter folder by learner tensor name, its alpha, and its rank."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "adapter_model.safetensors")
    start, end = "base_model.model.", ".lora_A.weight"
    factors = {}
    for key in (key for key in weights if key.endswith(end)):
        name = key.removeprefix(start).removesuffix(end)
        b = weights[f"{start}{name}.lora_B.weight"]
        factors[f"{name}.weight"] = (b.astype(np.float32), weights[key].astype(np.float32))
    return factors, config["lora_alpha"], config["r"]


def merge(source: GGUF, adapter: Adapter | None, out: Path, advance: Callable[[int], None]) -> None:
    """Write source + adapter as a 16-bit GGUF with the source's metadata; only `general.file_type` changes.

    A few blocks of rows are in memory at a time, so that the size of the model does not matter. BF16 sources stay BF16,
    everything else becomes F16; vectors, and matrices that a quantizer had left in F32, stay as they are.

    Args:
        advance: called with bytes as they are written.
    """
    sixteen = sixteen_bit(source)
    by_name = {t.name: t for t in source.tensors}

    def block(target: Tensor, rows: slice) -> np.ndarray:
        tensor, added = by_name[target.name], adapter if adapter and target.name in adapter.factors else None
        if added is None and tensor.type == target.type:
            return source.raw_rows(tensor, rows)
        weights = source.dequantized_rows(tensor, rows)
        if added:
            weights += added.delta(target.name, rows)
        return quantize(weights, target.type)

    targets = [replace(t, type=_merged_type(t, sixteen, source)) for t in source.tensors]
    with ThreadPoolExecutor(threads := min(cores(), _THREADS)) as pool:

        def data(target: Tensor) -> Iterator[np.ndarray]:
            return _ahead(pool, threads, partial(block, target), by_name[target.name].blocks())

        gguf_file.write(out, source, targets, data, {"general.file_type": _FILE_TYPE[sixteen]}, advance)


def _ahead(
    pool: ThreadPoolExecutor, count: int, make: Callable[[slice], np.ndarray], blocks: Iterator[slice]
) -> Iterator[np.ndarray]:
    """What is made of each block, in order, with no more than `count` of them made or under way and not yet taken."""
    under_way = deque(pool.submit(make, rows) for rows in islice(blocks, count))
    while under_way:
        made = under_way.popleft().result()
        under_way.extend(pool.submit(make, rows) for rows in islice(blocks, 1))
        yield made


def merged_bytes(source: GGUF) -> int:
    """Size of the tensors that `merge` writes, at 16 bit."""
    return 2 * source.parameters


def sixteen_bit(source: GGUF) -> T:
    """The type of the matrices that `merge` writes."""
    return T.BF16 if any(t.type == T.BF16 for t in source.tensors) else T.F16


def _merged_type(tensor: Tensor, sixteen: T, source: GGUF) -> T:
    all_f32 = source.metadata.get("general.file_type") == 0
    if len(tensor.shape) == 1 or (tensor.type == T.F32 and not all_f32):
        return tensor.type
    return sixteen
