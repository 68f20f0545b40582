"""Import a model once: to a 16-bit master that the learner can load in any precision."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from genius_lite.errors import UserError
from genius_lite.rundir import write_json
from genius_lite.weights import gguf_file, mapping
from genius_lite.weights.gguf_checks import check_model
from genius_lite.weights.gguf_file import GGUF, sha256
from genius_lite.weights.gguf_header import Tensor, shown
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.skeleton import check_complete, read_config, write_for_transformers

MAP_FILE = "tensor_map.json"
SOURCE_FILE = "source.json"
# What transformers lists beside causal language models: encoder-decoders, and two sections of its own tables.
_NOT_CAUSAL = {"t5", "umt5", "general", "tokenizer"}


@dataclass(frozen=True)
class Base:
    """The model before any round: the GGUF that adapters are merged onto, and the learner's copy of it (a folder)."""

    gguf: GGUF
    master: Path

    @staticmethod
    def of(master: Path) -> Base:
        """The base that a master was imported from.

        Raises:
            UserError: nothing is imported there, or the GGUF has gone.
        """
        recorded = master / SOURCE_FILE
        if not recorded.is_file():
            raise UserError(f"{master}: no model is imported here yet; finish the run first")
        path = Path(json.loads(recorded.read_text(encoding="utf-8"))["path"])
        if not path.is_file():
            raise UserError(f"{master} was imported from {path}, which is not there any more")
        return Base(gguf_file.read(path), master)

    @property
    def tensor_map(self) -> TensorMap:
        """Which of its tensors is which of the learner's."""
        return TensorMap.load(self.master / MAP_FILE)

    @property
    def sha256(self) -> str:
        """Of the GGUF, as it was when it was imported."""
        return self._recorded["sha256"]

    @property
    def origin(self) -> str:
        """Where the user found it: a path, hf: or python:."""
        return self._recorded["origin"] or self.gguf.path.name

    @property
    def name(self) -> str:
        """The file's name without its quantization type and shard number, and of letters, digits and ._+- alone.

        It becomes part of other names, and of commands that are pasted into a shell.
        """
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", self.gguf.path.stem)
        stem = re.sub(r"[.-](Q\d\w*|IQ\d\w*|B?F16|F32)$", "", stem, flags=re.IGNORECASE)
        return re.sub(r"[^\w.+-]", "_", stem)

    @property
    def _recorded(self) -> dict[str, Any]:
        return json.loads((self.master / SOURCE_FILE).read_text(encoding="utf-8"))


def check_supported(source: GGUF) -> None:
    """Refuse, before anything is made, what the learner could not import.

    Raises:
        UserError: it is no sound model, of an architecture that transformers does not read, or of types that gguf does
            not.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    check_model(source)
    causal = set(GGUF_SUPPORTED_ARCHITECTURES) - _NOT_CAUSAL
    if source.architecture not in causal:
        raise UserError(
            f"{source.path}: architecture `{source.architecture}` cannot be trained; "
            f"supported are {', '.join(sorted(causal))}"
        )
    for tensor in {t.type: t for t in source.tensors}.values():
        block_bytes = GGML_QUANT_SIZES[tensor.type][1]
        try:
            dequantize(np.zeros(block_bytes, np.uint8), tensor.type)
        except NotImplementedError:
            kind = f"{shown(tensor.name)} is {tensor.type.name}"
            raise UserError(f"{source.path}: {kind}, a type that cannot be imported") from None


def import_master(source: GGUF, folder: Path, advance: Callable[[int], None], origin: str = "") -> None:
    """Write the master to `folder`: safetensors in 16 bit, its config, and the tensor map.

    The weights are dequantized by transformers (`from_pretrained(gguf_file=...)`).

    Args:
        advance: called with 1 after each of `source.tensors` that is mapped.
        origin: where the user found the model, for its card.

    Raises:
        UserError: the imported model is not the GGUF's, or has a weight that is no finite 16-bit number.
    """
    model = _load(source, folder)
    # transformers still marks the model as quantized, and would refuse to save it.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    weights = model.state_dict()
    names = mapping.learner_names(source, [n for n in weights if n.endswith(".weight") and weights[n].ndim == 2])
    found = mapping.match(source, names, lambda name: weights[name].numpy().view(np.uint16), advance)
    _check_finite(source, (t for t in source.tensors if t.name not in found.tensors))
    found.save(folder / MAP_FILE)
    recorded = {"path": str(source.path.absolute()), "sha256": sha256(source.files), "origin": origin}
    write_json(folder / SOURCE_FILE, recorded)


def _load(source: GGUF, folder: Path) -> Any:
    """The model in transformers, read from a copy that is made for it."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:  # inside, so that it goes with a stage that was killed
        copy = Path(name) / "model.gguf"
        write_for_transformers(source, copy)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=read_config(source, copy),
            gguf_file=copy.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float16,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model, found = loaded
    check_complete(source, model, set(found["missing_keys"]))
    return model


def _check_finite(source: GGUF, tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        for rows in tensor.blocks():
            mapping.check_finite(source, tensor, mapping.as_float16(source.dequantized_rows(tensor, rows)))
