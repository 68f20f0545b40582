"""Whether llama.cpp's AMX kernels work here, tried in a process that may die: `python -m genius_lite.sampler.amx`.

AMX, which server processors have, multiplies small int8 matrices. Compiled by GCC 12 llama.cpp's kernels load a tile
configuration that the compiler has optimized away, and the process dies in the first decode (llama.cpp issue 20824,
pull request 26954). Compiled with -fno-dse they work.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import llama_cpp
import msgspec
import numpy as np

from genius_lite.measurements import recall, remember
from genius_lite.sampler.messages import EngineSettings
from genius_lite.sampler.process import attempt

_PATIENCE = 60.0  # seconds; it takes one
_WIDTH = 64  # of the model that is tried: its matrices fill AMX tiles
_TOKENS = 24  # decoded together, more than a tile has rows
_DIFFERENCE = 0.01  # of the largest logit


class _Tried(msgspec.Struct, frozen=True):
    works: bool


def broken() -> bool:
    """Whether llama.cpp would repack weights for AMX on this machine and then die, or compute something else."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info() and not works()


def works(command: Sequence[str] = (sys.executable, "-P", "-m", "genius_lite.sampler.amx")) -> bool:
    """Whether a model comes out of llama.cpp's kernels as it does without them; remembered for as it is built now.

    Args:
        command: tries it, and ends with 0 if so.
    """
    key = _build()
    if found := recall("amx", key, _Tried):
        return found.works
    try:
        ended = attempt(command, _PATIENCE)
    except subprocess.TimeoutExpired:
        return False  # a busy machine may have been the reason, so it is tried again
    found = _Tried(ended.returncode == 0)
    with suppress(OSError):  # without a cache that can be written, each process tries for itself
        remember("amx", key, found)
    return found.works


def _build() -> list[tuple[str, int, int]]:
    """llama.cpp's libraries as they are now: one that is compiled anew has the same version."""
    files = sorted(Path(llama_cpp.__file__).parent.glob("lib/*"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def main() -> None:
    """Exit with 0 if a model's logits are the same with repacked weights as without."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        _write_model(model)
        plain_TV, repacked_TV = (_logits(model, repack=repack) for repack in (False, True))
    if not np.abs(repacked_TV - plain_TV).max() <= _DIFFERENCE * np.abs(plain_TV).max():
        raise SystemExit("the logits differ")


def _write_model(path: Path) -> None:
    """One random layer in Q8_0, with a vocabulary of numbers."""
    import gguf

    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(_WIDTH)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(_WIDTH)
    for add in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    kind = gguf.GGMLQuantizationType.Q8_0
    layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in (*(f"blk.0.{matrix}" for matrix in layer), "token_embd", "output"):
        weight = rng.normal(size=(_WIDTH, _WIDTH)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _logits(path: Path, *, repack: bool) -> np.ndarray:
    """(tokens, vocabulary), of a few tokens decoded together."""
    from genius_lite.sampler.llama import Batch, load  # which asks this module, where nobody says whether to repack

    # Two threads: each loads the tile configuration for itself.
    _, context = load(str(path), EngineSettings(slots=1, context=_WIDTH, threads=2, gpu_layers=0), repack=repack)
    batch = Batch(context, _WIDTH)
    batch.add(0, list(range(_TOKENS)), 0, _TOKENS)
    return batch.decode().copy()


if __name__ == "__main__":
    main()
