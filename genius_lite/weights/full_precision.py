"""A model's own weights (`model.weights`), in any architecture that transformers knows.

The learner's copy is loaded from them, and the GGUF is written anew with them, under the metadata of the quantized one,
whose rows are theirs with rounding on them, so that each is found by similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf.constants import GGMLQuantizationType as T
from gguf.constants import LlamaFileType
from gguf.quants import quantize

from genius_lite.errors import UserError
from genius_lite.progress import Advance
from genius_lite.records import prepared
from genius_lite.rundir.documents import read_object
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import EMBEDDINGS, GGUF
from genius_lite.weights.gguf_header import Tensor, shown
from genius_lite.weights.mapping import TELLING, Rounded, TensorMap, check_finite, layer_of, match, name_map
from genius_lite.weights.meta_model import check_complete, described_model, reading_foreign
from genius_lite.weights.rope import rope_base

ADAPTER_CONFIG = "adapter_config.json"
_WHOLE = ("phi3", "llama", "qwen2", "starcoder2")  # of which llama.cpp reads no window; Mistral is a llama
_ROUNDED = 2**-8  # of a vector's numbers, where a converter had them in bfloat16


def read_config(folder: Path) -> Any:
    """Read the config beside a model's weights, and see that transformers knows such a model; loads no weights.

    Raises:
        UserError: there is none, or no causal language model of transformers has it; the weights are quantized
            themselves; or they are fewer than such a model has.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    _refuse_code(read_object(folder / "config.json"), folder)
    if (generation := folder / "generation_config.json").exists():
        read_object(generation)
    if (folder / ADAPTER_CONFIG).exists():
        beside = f"{ADAPTER_CONFIG} lies beside the weights, and transformers would load what it names"
        raise UserError(f"{folder}: {beside}; move it away")
    with reading_foreign(folder, "config.json", KeyError, OSError):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{folder}: transformers has no causal language model of type `{config.model_type}`")
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder}: its weights are quantized; model.weights takes those of 16 or 32 bits")
    described_model(config, folder, "config.json", sum(prod(shape) for _, shape in headers(folder).values()))
    _follow_llama_cpp(config)
    return config


def _refuse_code(config: Any, folder: Path, asks: str = "") -> None:
    """Refuse a config that names a kernel of the hub, which transformers would fetch and run.

    Args:
        asks: the key of an implementation that this part of it is below; of a dictionary transformers takes a part.
    """
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        below = asks or (key if isinstance(key, str) and key.endswith("_implementation") else "")
        if isinstance(value, (dict, list)):
            _refuse_code(value, folder, below)
        elif below and isinstance(value, str) and "/" in value:
            raise UserError(f"{folder}: config.json asks for code of the hub ({below}: {brief(value)}); take that out")


def _follow_llama_cpp(config: Any) -> None:
    """Round YaRN's bounds to whole dimensions, as llama.cpp always does; gpt-oss was made without."""
    every = getattr(config, "rope_parameters", None) or {}
    for rope in (every, *(part for part in every.values() if isinstance(part, dict))):
        if rope.get("rope_type") == "yarn":
            rope["truncate"] = True


def _attend_alike(config: Any, source: GGUF) -> None:
    """Set what llama.cpp takes from the GGUF, or leaves out, and transformers takes from the config.

    The base of rotary frequencies, where both mean the same by it; and every layer sees the whole text where llama.cpp
    lets it: of Mistral, Qwen2, StarCoder2 and Phi-3 in any case, whatever their header says.
    """
    text, own = config.get_text_config(), source.architecture
    every = getattr(text, "rope_parameters", None) or {}
    full = every.get("full_attention", every)
    if full.get("rope_type") in ("default", "linear", "yarn", "llama3") and "rope_theta" in full:
        full["rope_theta"] = rope_base(source)
    windowed = own == "gemma2" or (own not in _WHOLE and source.own("attention.sliding_window"))
    if getattr(text, "sliding_window", None) and not windowed:
        text.sliding_window = None
        if kinds := getattr(text, "layer_types", None):
            text.layer_types = ["full_attention" if kind == "sliding_attention" else kind for kind in kinds]


def load_weights(folder: Path, source: GGUF | None = None) -> Any:
    """Load the model on the CPU, its matrices in 16 bits: bfloat16 where that is what they are, else float16.

    Args:
        source: the GGUF that the sampler has of it, if they are its maker's: the learner attends as that one does.

    Raises:
        UserError: see `read_config`; or some weights are missing, are no safetensors, or no finite 16-bit numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config, kinds = read_config(folder), {kind for kind, shape in headers(folder).values() if len(shape) > 1}
    if source:
        _attend_alike(config, source)
    dtype = torch.bfloat16 if kinds == {"BF16"} else torch.float16 if kinds == {"F16"} else torch.float32
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    model, found = loaded
    check_complete(folder, model, set(found["missing_keys"]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and parameter.dtype == torch.float32:
            short = parameter.data.bfloat16()
            parameter.data = short if torch.equal(short.float(), parameter.data) else parameter.data.half()
        if not parameter.isfinite().all():
            raise UserError(f"{folder}: {name} holds a weight that is no finite 16-bit number")
    return model


def write_full_precision(
    source: GGUF, weights: Mapping[str, Any], folder: Path, out: Path, advance: Advance
) -> TensorMap:
    """Write the learner's matrices under the GGUF's names, everything else from `source`.

    Vectors are not quantized in a GGUF, and must be the weights' own; a block that the learner does not have (one more
    token's) stays as it is.

    Args:
        weights: learner's name -> torch tensor, matrices in 16 bits.
        folder: what they are from, for messages.
        advance: called with bytes as they are written.

    Returns:
        Where each tensor stands among the weights.

    Raises:
        UserError: they are of another model: none of them fits, a shape, the rows or a vector differ, or the GGUF lacks
            a matrix.
    """
    import torch

    found = match(source, weights, Rounded(), folder)
    if not found.tensors:
        raise UserError(f"{folder}: none of its tensors is one of {source.path}; are they the same model?")
    _check_rest(source, weights, found, folder)

    matrices = [t.name for t in source.tensors if t.type != T.F32 and t.name in found.tensors]
    theirs = {name: weights[found.tensors[name].name] for name in matrices}
    types = {name: T.BF16 if weight.dtype == torch.bfloat16 else T.F16 for name, weight in theirs.items()}

    def data(target: Tensor) -> Iterator[np.ndarray]:
        tensor = source.by_name[target.name]
        if target.name not in theirs:
            for rows in tensor.blocks():
                check_finite(source, tensor, source.dequantized(tensor, rows))
                yield source.raw(tensor, rows)
            return
        weight = found.take(target.name, theirs[target.name]).reshape(-1, tensor.columns)
        for rows in tensor.blocks():
            yield quantize(weight[rows].float().numpy(), target.type)

    targets = [replace(t, type=types.get(t.name, t.type)) for t in source.tensors]
    most = LlamaFileType.MOSTLY_BF16 if T.BF16 in {t.type for t in targets} else LlamaFileType.MOSTLY_F16
    gguf_file.write(out, source, targets, data, {"general.file_type": most}, advance)
    return found


def _check_rest(source: GGUF, weights: Mapping[str, Any], found: TensorMap, folder: Path) -> None:
    """Refuse weights with which the learner's model would be another one than the GGUF's without a word.

    What the GGUF has beyond the learner's model is left alone: a block for one more token, keys that no layer reads.
    """
    import torch

    own = source.by_name
    names = name_map(source, 1 + max(int(layer_of(name) or 0) for name in weights))
    tables = [weights[place.name] for name, place in found.tensors.items() if name == EMBEDDINGS]
    for name, weight in weights.items():
        ours = names.get_name(name, try_suffixes=(".weight", ".bias")) if name.endswith((".weight", ".bias")) else None
        wrong = ""
        if weight.ndim == 1 and ours in own and own[ours].shape == tuple(weight.shape):
            like = _is_of(weight.float().numpy(), source.dequantized(own[ours]))
            wrong = "" if like else f"{name} is not {shown(ours)}"
        elif weight.ndim == 2 and ours and ours not in own and name not in found.of_learner:
            tied = any(torch.equal(weight, table) for table in tables)
            wrong = "" if tied else f"{name} would be {shown(ours)}, which is not there"
        elif weight.ndim == 3 and len(weight) > 1 and min(weight.shape[1:]) >= TELLING:  # experts
            parts = sum(own[part].rows * own[part].columns for part in found.of_learner.get(name, []))
            wrong = "" if parts == weight.numel() else f"{name} is not there, or has other rows"
        if wrong:
            raise UserError(f"{folder} and {source.path}: {wrong}; are they the same model?")


def _is_of(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Say whether a GGUF's vector is this one: some are turned as rows are, of some families one is added."""
    for a, b in ((theirs, ours), (np.sort(theirs), np.sort(ours))):
        shifted = a + np.median(b - a)
        if np.allclose(shifted, b, rtol=_ROUNDED, atol=_ROUNDED * np.abs(b).mean()):
            return True
    return False


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # the file that each tensor is in


def headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Read what the safetensors of a folder hold, one file or several with an index: each tensor's dtype and shape.

    Raises:
        UserError: there are none, or they are broken.
    """
    from safetensors import SafetensorError, safe_open

    index, names = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.is_file():
        try:
            names = {*msgspec.json.decode(index.read_bytes(), type=prepared(_Index)).weight_map.values()}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise UserError(f"{index}: no index of safetensors ({e}); fetch it again") from None
        if outside := sorted(name for name in names if not (folder / Path(name).name).is_file() or "/" in name):
            raise UserError(f"{folder}: the index names {outside[0]}, which is not there; fetch it")
    elif not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no model.safetensors here, and no model.safetensors.index.json")
    found = dict[str, tuple[str, list[int]]]()
    for file in sorted(names):
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
                found |= {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
        except (SafetensorError, OSError) as e:
            raise UserError(f"{folder / file}: no safetensors file, or a broken one ({e}); fetch it again") from None
    if not any(len(shape) > 1 for _, shape in found.values()):
        raise UserError(f"{folder}: its safetensors hold no matrix")
    return found
