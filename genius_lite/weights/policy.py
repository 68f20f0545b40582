"""A policy as a GGUF: the source with an adapter merged onto it, at any quantization type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genius_lite.recipe import QuantType
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import MAP_FILE
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.merge import Adapter, merge, merged_bytes
from genius_lite.weights.quantize import quantize, quantized_bytes


def policy_gguf(
    source: GGUF,
    master: Path,
    adapter: Path | None,
    kind: QuantType,
    out: Path,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Write source + adapter as a GGUF of type `kind`; the 16-bit file in between is deleted.

    Args:
        adapter: a peft adapter folder; None writes the base model.
        master: the imported master, for its tensor map.
        advance: called with bytes as they are written, `policy_bytes` in all (about).
    """
    sixteen = out.with_name(f"{out.name}.merged")
    merge(
        source,
        TensorMap.load(master / MAP_FILE),
        Adapter.load(adapter) if adapter else None,
        sixteen,
        advance,
    )
    if kind in ("F16", "BF16"):
        sixteen.rename(out)
        return
    quantize(sixteen, kind, source, out, advance)
    sixteen.unlink()


def policy_bytes(source: GGUF, kind: QuantType) -> int:
    """About how many bytes `policy_gguf` writes: the merged file, and the quantized one twice."""
    return merged_bytes(source) + (0 if kind in ("F16", "BF16") else 2 * quantized_bytes(source, kind))
