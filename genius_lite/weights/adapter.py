"""A trained adapter: peft's folder with an importance matrix beside it, and the GGUF that llama.cpp applies by itself.

Both GGUFs are those of llama.cpp's own tools: `llama-quantize --imatrix` and `llama-cli --lora` read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import gguf
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from genius_lite.errors import UserError
from genius_lite.rundir.documents import as_typed, read_json, read_typed
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.full_precision import ADAPTER_CONFIG
from genius_lite.weights.importing import Base
from genius_lite.weights.mapping import TensorMap

BASE_FILE = "base.json"  # beside an adapter: the SHA-256 of the GGUF that it was trained on
IMATRIX_FILE = "imatrix.gguf"  # beside an adapter
_LEAST = 1e-6  # of the largest importance of a matrix, that each of its columns has
_PLAIN = {
    **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "init_lora_weights": True},
    **dict.fromkeys(("alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "use_qalora", "lora_bias"), False),
    **dict.fromkeys(("modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices"), False),
    **dict.fromkeys(("exclude_modules", "layers_to_transform", "fan_in_fan_out", "megatron_config"), False),
    **dict.fromkeys(("auto_mapping", "alora_invocation_tokens", "arrow_config"), False),
}
"""What must be so in peft's config, lest the learner have another model than is merged; False stands for nothing."""
_SUM, _COUNT = ".in_sum2", ".counts"

Matrix = dict[str, np.ndarray]
"""GGUF tensor name -> mean squared input of each column, float32."""


class _Config(msgspec.Struct):
    """What is read of peft's config."""

    r: Annotated[int, msgspec.Meta(ge=1)]
    lora_alpha: Annotated[float, msgspec.Meta(gt=-1e9, lt=1e9)]
    target_modules: list[str] = []


class _Trained(msgspec.Struct):
    sha256: str


@dataclass(frozen=True)
class Adapter:
    """LoRA factors by GGUF tensor name, rows in the GGUF's order, and their scale: delta W = alpha / rank * B @ A.

    `importance` has how much each column of a tensor matters, for the quantizer; it may lack some, or all.
    """

    factors: dict[str, tuple[np.ndarray, np.ndarray]]  # B (rows, rank) and A (rank, columns), float32
    alpha: float
    rank: int
    importance: Matrix = field(default_factory=dict)

    @staticmethod
    def load(folder: Path, base: Base) -> Adapter:
        """Read a peft adapter (`adapter_model.safetensors`, `adapter_config.json`) of this base.

        Raises:
            UserError: it was trained on another model: the hash beside it, a name or a shape tells.
        """
        recorded = read_typed(folder / BASE_FILE, _Trained)
        if recorded and recorded.sha256 != base.sha256:
            raise UserError(f"{folder} was trained on another model than {base.gguf.path}; it cannot be merged onto it")
        theirs, alpha, rank = read_factors(folder)
        tensor_map = base.tensor_map
        factors, not_its = {}, f"{folder} does not belong to {base.gguf.path}"
        for name, (b, a) in theirs.items():
            if name not in tensor_map.of_learner:
                raise UserError(f"{not_its}, which has no {name}")
            for gguf_name in tensor_map.of_learner[name]:
                try:
                    part = b[tensor_map.rows(gguf_name)], a[:, tensor_map.columns(gguf_name)]
                except IndexError as e:
                    raise UserError(f"{not_its}: {name}: {e}") from None
                shape, wanted = (len(part[0]), a.shape[1]), base.gguf.by_name[gguf_name].shape
                if shape != wanted:
                    raise UserError(f"{not_its}: it has {name} as {shape}, not {wanted}")
                factors[gguf_name] = part
        return Adapter(factors, alpha, rank, importance_for(base, folder / IMATRIX_FILE))

    def update(self, name: str, rows: slice) -> np.ndarray:
        """Compute what the adapter adds to some rows of the GGUF's tensor `name`, float32 (rows, columns)."""
        b, a = self.factors[name]
        return (b[rows] * np.float32(self.alpha / self.rank)) @ a


def read_factors(folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, int]:
    """Read B and A (float32) of a peft adapter folder by learner tensor name, its alpha, and its rank.

    Raises:
        UserError: it is none, or has a factor that is not finite, or of another rank.
    """
    found = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(found, dict):
        raise UserError(f"{folder} is no adapter: {ADAPTER_CONFIG} is missing, or cut off")
    config = as_typed(found, _Config, folder / ADAPTER_CONFIG)
    if odd := next((key for key, plain in _PLAIN.items() if (found.get(key, plain) or False) != plain), None):
        raise UserError(f"{folder / ADAPTER_CONFIG}: {odd} is {brief(str(found[odd]), 100)}, which no run makes")
    try:
        weights = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as e:
        raise UserError(f"{folder}/adapter_model.safetensors cannot be read ({brief(str(e), 200)})") from None
    start, end = "base_model.model.", ".lora_A.weight"
    factors = {}
    for key in (key for key in weights if key.endswith(end)):
        name = key.removeprefix(start).removesuffix(end)
        a, b = weights[key], weights.get(f"{start}{name}.lora_B.weight", weights[key])
        if (a.ndim, b.ndim) != (2, 2) or not a.shape[0] == b.shape[1] == config.r:
            raise UserError(f"{folder}: {brief(name, 100)} is not of rank {config.r}: {a.shape} and {b.shape}")
        a, b = a.astype(np.float32), b.astype(np.float32)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(f"{folder}: {brief(name, 100)} has numbers that are not finite")
        factors[f"{name}.weight"] = b, a
    return factors, config.lora_alpha, config.r


def write_lora(base: Base, adapter: Path, out: Path) -> None:
    """Write a peft adapter folder of this base as a LoRA GGUF: factors in F32, rows of B in the GGUF's order."""
    loaded = Adapter.load(adapter, base)
    writer = gguf.GGUFWriter(out, base.gguf.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(loaded.alpha))
    for name, (b, a) in loaded.factors.items():
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    _finish(writer)


def write_imatrix(sums: Path, tensor_map: TensorMap, dataset: str, out: Path) -> None:
    """Write the importance that the learner gathered as a GGUF (llama.cpp, tools/imatrix).

    Args:
        sums: safetensors with the summed squared inputs by learner name, and how many `tokens` they are of.
        dataset: what the tokens were, for whoever looks into the file.
    """
    gathered = load_file(sums)
    tokens = int(gathered.pop("tokens"))
    writer = gguf.GGUFWriter(out, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", tokens)
    for gguf_name, place in sorted(tensor_map.tensors.items()):
        if place.name in gathered:
            sums_C = gathered[place.name].astype(np.float32)[tensor_map.columns(gguf_name)]
            writer.add_tensor(f"{gguf_name}{_SUM}", sums_C[None])
            writer.add_tensor(f"{gguf_name}{_COUNT}", np.array([[tokens]], dtype=np.float32))
    _finish(writer)


def importance_for(base: Base, file: Path) -> Matrix:
    """Read the importance of a base's columns; empty without a file, a UserError of another model's."""
    columns = {t.name: t.columns for t in base.gguf.tensors}
    importance = read_imatrix(file) if file.exists() else {}
    for name, of_columns in importance.items():
        if len(of_columns) != (wanted := columns.get(name, len(of_columns))):  # llama.cpp would read beyond its end
            raise UserError(f"{file} does not belong to {base.gguf.path}, whose {name} has {wanted} columns")
    return importance


def read_imatrix(path: Path) -> Matrix:
    """Read what `write_imatrix` wrote; a UserError where there is no importance, or one that cannot be."""
    file = gguf_file.read(path)
    values, found = {t.name: file.dequantized(t) for t in file.tensors}, Matrix()
    for key, sums in ((key, sums) for key, sums in values.items() if key.endswith(_SUM)):
        name = key.removesuffix(_SUM)
        counts = values.get(f"{name}{_COUNT}")
        sound = ((sums >= 0) & (sums < np.inf)).all()
        if counts is None or counts.size != 1 or not sound or not 0 < counts.item() < np.inf:
            raise UserError(f"{path}: {brief(name, 100)} has no importance: its sums or their count cannot be")
        matters = (sums / counts.item()).reshape(-1)
        if least := _LEAST * matters.max():  # llama.cpp writes a block none of which matters as zeros
            found[name] = np.maximum(matters, least)
    if not any(key.endswith(_SUM) for key in values):
        raise UserError(f"{path}: no importance matrix; delete its folder to have it made anew")
    return found


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
