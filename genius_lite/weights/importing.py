"""Import a model once: to a 16-bit checkpoint that the learner can load in any precision."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES
from gguf.quants import dequantize

from genius_lite.errors import UserError
from genius_lite.progress import Advance
from genius_lite.recipe import Model, Prefix
from genius_lite.rundir.disk import put
from genius_lite.rundir.documents import RecordedSource, read_typed
from genius_lite.rundir.folder import SOURCE, json_bytes
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import GGUF, sha256
from genius_lite.weights.gguf_header import shown
from genius_lite.weights.mapping import Identical, TensorMap, as_float16, check_finite, match
from genius_lite.weights.meta_model import check_complete, fill_in, read_config, write_for_transformers
from genius_lite.weights.source import locate, split_origin
from genius_lite.weights.untrusted import check_model

MAP_FILE = "tensor_map.json"
FULL_PRECISION = "full-precision"  # beside the checkpoint, in a run: `model.weights` as the GGUF that is merged onto
_LONGEST_NAME = 160  # characters


@dataclass(frozen=True)
class Base:
    """The model before any round: the GGUF that adapters are merged onto, and the learner's copy of it (a folder)."""

    gguf: GGUF
    hf_checkpoint: Path

    @staticmethod
    def of(hf_checkpoint: Path) -> Base:
        """Find the base that a checkpoint was imported from.

        A GGUF that was moved is looked for in the run folder and where the recipe found it: in its package, or on the
        hub, which downloads it again.

        Raises:
            UserError: nothing is imported there, or the GGUF has gone, or has become another one.
        """
        if not (hf_checkpoint / SOURCE).is_file():
            raise UserError(f"{hf_checkpoint}: no model is imported here yet; finish the run first")
        recorded = _read_recorded(hf_checkpoint)
        own = Path(recorded.path)
        inside = hf_checkpoint.parent / FULL_PRECISION / own.name
        if not own.is_file() and inside.is_file():
            own = inside
        named, revision = split_origin(recorded.origin)
        if not own.is_file() and named.startswith((Prefix.HUB, Prefix.PACKAGE)) and named.endswith(".gguf"):
            own = locate(Model(gguf=named, revision=revision))
        if not own.is_file():
            raise UserError(
                f"{hf_checkpoint} was imported from {recorded.path}, which is not there any more; put it back, or run "
                "the recipe with its new path once: the run goes on from there"
            )
        base = Base(gguf_file.read(own), hf_checkpoint)
        base.check()
        return base

    def check(self) -> None:
        """See that the GGUF is still the one that was imported, else a UserError, and record where it lies by now."""
        recorded = _read_recorded(self.hf_checkpoint)
        now = _source_of(self.gguf, recorded.sha256, recorded.origin)
        if now == recorded:
            return
        if (digest := sha256(self.gguf.files)) != recorded.sha256:
            changed = f"{self.gguf.path} is not the model that {self.hf_checkpoint} was imported from any more"
            digests = f"SHA-256 {digest[:12]}..., then {recorded.sha256[:12]}..."
            raise UserError(f"{changed} ({digests}); put the old file back, or begin a new run")
        with suppress(OSError):  # a folder that may only be read is as good
            _record(self.hf_checkpoint, now)

    @property
    def tensor_map(self) -> TensorMap:
        """Which of its tensors is which of the learner's."""
        return TensorMap.load(self.hf_checkpoint / MAP_FILE)

    @property
    def sha256(self) -> str:
        """Of the GGUF, as it was when it was imported."""
        return _read_recorded(self.hf_checkpoint).sha256

    @property
    def origin(self) -> str:
        """Where the user found it: a path, hf: or python:."""
        return _read_recorded(self.hf_checkpoint).origin or self.gguf.path.name

    @property
    def name(self) -> str:
        """The file's name without its type and shard number, such that file names and shell commands can hold it."""
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", self.gguf.path.stem)
        stem = re.sub(r"[.-](Q\d\w*|IQ\d\w*|B?F16|F32)$", "", stem, flags=re.IGNORECASE)
        return re.sub(r"[^\w.+-]", "_", stem, flags=re.ASCII)[:_LONGEST_NAME]


def _source_of(gguf: GGUF, digest: str, origin: str) -> RecordedSource:
    found = [file.stat() for file in gguf.files]
    times = [file.st_mtime_ns for file in found]
    return RecordedSource(str(gguf.path.absolute()), digest, origin, [file.st_size for file in found], times)


def _read_recorded(hf_checkpoint: Path) -> RecordedSource:
    recorded = read_typed(hf_checkpoint / SOURCE, RecordedSource)
    if not recorded or not recorded.path or not recorded.sha256:
        raise UserError(f"{hf_checkpoint / SOURCE} is missing, or cut off; delete {hf_checkpoint} to import anew")
    return recorded


def _record(hf_checkpoint: Path, recorded: RecordedSource) -> None:
    put(hf_checkpoint / SOURCE, json_bytes(recorded, SOURCE), shared=True)  # chat and export look too


def check_supported(source: GGUF, with_weights: bool = False) -> Any:
    """Refuse, before anything is made, what the learner could not import; return the config that the header describes.

    Args:
        with_weights: the learner takes the model's own weights and config, of the GGUF names and rows; returns None.

    Raises:
        UserError: no sound model, one that transformers does not read or misreads, or types that gguf does not read.
    """
    check_model(source)
    config = None if with_weights else read_config(source)
    if source.architecture not in MODEL_ARCH_NAMES.values():
        unknown = f"architecture `{source.architecture}` cannot be trained: the installed gguf has no names for it"
        raise UserError(f"{source.path}: {unknown}; a newer one may (pip install -U gguf)")
    for tensor in {t.type: t for t in source.tensors}.values():
        try:
            dequantize(np.zeros(GGML_QUANT_SIZES[tensor.type][1], np.uint8), tensor.type)
        except NotImplementedError:
            kind = f"{shown(tensor.name)} is {tensor.type.name}"
            raise UserError(f"{source.path}: {kind}, a type that cannot be imported") from None
    return config


def import_checkpoint(source: GGUF, folder: Path, advance: Advance, origin: str = "") -> None:
    """Write the checkpoint to `folder`: safetensors in 16 bit, its config, and the tensor map.

    The weights are dequantized by transformers (`from_pretrained(gguf_file=...)`).

    Args:
        advance: called with 1 after each matrix that is mapped.
        origin: where the user found the model, for its card.

    Raises:
        UserError: the imported model is not the GGUF's, or has a weight that is no finite 16-bit number.
    """
    model = _load(source, folder)
    found = match(source, model.state_dict(), Identical(), source.path, advance)
    for tensor in (t for t in source.tensors if t.name not in found.tensors):
        for rows in tensor.blocks():
            check_finite(source, tensor, as_float16(source.dequantized(tensor, rows)))
    save_checkpoint(source, model, found, folder, origin)


def save_checkpoint(source: GGUF, model: Any, found: TensorMap, folder: Path, origin: str = "") -> None:
    """Write the learner's copy of `source`, whose matrices were found in the model's state."""
    model.save_pretrained(folder)
    found.save(folder / MAP_FILE)
    _record(folder, _source_of(source, source.sha256, origin))


def _load(source: GGUF, folder: Path) -> Any:
    """Load the model in transformers, from a copy that is made for it."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    config = read_config(source)
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:  # inside, so that it goes with a stage that was killed
        copy = Path(name) / "model.gguf"
        write_for_transformers(source, copy)
        name_map = gguf.get_tensor_name_map  # transformers 5.23 makes it for each module, half of an import's time
        gguf.get_tensor_name_map = cache(name_map)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                gguf_file=copy.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float16,
                output_loading_info=True,
                trust_remote_code=False,
            )
        finally:
            gguf.get_tensor_name_map = name_map
    model, found = loaded
    check_complete(source.path, model, fill_in(source, model, set(found["missing_keys"])))
    return model
