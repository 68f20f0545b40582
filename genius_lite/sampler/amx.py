"""Whether llama.cpp's AMX kernels work here, tried in a process that may die: `python -m genius_lite.sampler.amx`.

AMX, which server processors have, multiplies small int8 matrices. Compiled by GCC 12 llama.cpp's kernels load a tile
configuration that the compiler has optimized away, and the process dies in the first decode (llama.cpp issue 20824,
pull request 26954). Compiled with -fno-dse they work.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import llama_cpp
import msgspec
import numpy as np

from genius_lite.measurements import recall, remember

_PATIENCE = 60.0  # seconds; it takes one
_WIDTH = 64  # of the model that is tried: its matrices fill AMX tiles
_TOKENS = 24  # decoded together, more than a tile has rows
_DIFFERENCE = 0.01  # of the largest logit


class _Tried(msgspec.Struct, frozen=True):
    works: bool


def broken() -> bool:
    """Whether llama.cpp would repack weights for AMX on this machine and then die, or compute something else."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info() and not works()


def works(command: tuple[str, ...] = (sys.executable, "-P", "-m", "genius_lite.sampler.amx")) -> bool:
    """Whether a model comes out of llama.cpp's kernels as it does without them; remembered for as it is built now.

    Args:
        command: tries it, and ends with 0 if so.
    """
    key = _build()
    if found := recall("amx", key, _Tried):
        return found.works
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
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
    llama_cpp.llama_backend_init()
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
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        weight = rng.normal(size=(_WIDTH, _WIDTH)).astype(np.float32)
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in ("token_embd", "output"):
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
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers, model_params.use_extra_bufts = 0, repack
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise SystemExit("the model does not load")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _WIDTH
    params.n_threads = params.n_threads_batch = 2  # each loads the configuration for itself
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("the model gives no context")
    batch = llama_cpp.llama_batch_init(_TOKENS, 0, 1)
    batch.n_tokens = _TOKENS
    for i in range(_TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = i, i, 1, 0, 1
    if code := llama_cpp.llama_decode(context, batch):
        raise SystemExit(f"llama_decode failed with code {code}")
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(_TOKENS, _WIDTH)).copy()


if __name__ == "__main__":
    main()
