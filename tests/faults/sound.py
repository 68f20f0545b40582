"""The tiny models that are broken, taken apart."""

from __future__ import annotations

import copy
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tests.faults import raw
from tests.faults.raw import I32, Raw
from tests.support.models import tiny_gguf

SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
BASES = ("llama", "qwen2", "quantized", "sharded")
_SHARDS = 3


def bases(folder: Path) -> dict[str, list[Raw]]:
    """The sound models, each in one or several files."""
    found = {}
    for name in BASES:
        kind = GGMLQuantizationType.Q8_0 if name == "quantized" else GGMLQuantizationType.F16
        tiny_gguf(folder / f"{name}.gguf", "qwen2" if name == "qwen2" else "llama", kind=kind)
        found[name] = [raw.parse(folder / f"{name}.gguf", SIZES)]
    found["sharded"] = shards(found["sharded"][0])
    return found


def shards(whole: Raw) -> list[Raw]:
    """A model in several files, as llama-gguf-split writes it."""
    size, made = -(-len(whole.tensors) // _SHARDS), []
    for number in range(_SHARDS):
        entries = copy.deepcopy(whole.entries) if number == 0 else []
        made.append(Raw(3, entries, copy.deepcopy(whole.tensors[number * size : (number + 1) * size])))
        made[-1].put("split.no", raw.U16, raw.number(raw.U16, number))
        made[-1].put("split.count", raw.U16, raw.number(raw.U16, _SHARDS))
        made[-1].put("split.tensors.count", I32, raw.number(I32, len(whole.tensors)))
        made[-1].place()
    return made
