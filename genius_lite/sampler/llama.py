"""The part of llama.cpp's C API that the engine uses: a model with its context, and a batch of tokens.

Weights may be laid out anew for AMX, with which server processors multiply small int8 matrices. Compiled by GCC 12
llama.cpp's kernels load a tile configuration that the compiler has optimized away, and the process dies in the first
decode (llama.cpp issue 20824, pull request 26954). Compiled with -fno-dse they work. So they are tried once, in a
process that may die: `python -m genius_lite.sampler.llama`.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import numpy as np

from genius_lite.data.sandbox import KILLED, attempt, fate, helper
from genius_lite.measurements import recall, remember
from genius_lite.sampler.messages import EngineSettings

BATCH = 512  # tokens of one llama_decode, at most
_PATIENCE = 60.0  # seconds; to try AMX takes one
_WIDTH = 64  # of the model that AMX is tried with: its matrices fill AMX tiles
_TOKENS = 24  # decoded together, more than a tile has rows
_DIFFERENCE = 0.01  # of the largest logit
_DIFFERS = 3  # exit status


class EngineError(RuntimeError):
    """llama.cpp could not load the model, or could not decode."""


def load(
    path: str, settings: EngineSettings, repack: bool | None = None, loading: Callable[[], None] = lambda: None
) -> tuple[Any, Any]:
    """Load a model and make a context for it (`llama_model *`, `llama_context *`).

    Args:
        loading: called again and again while weights are read.
        repack: lay weights out anew for this processor; None: unless that is broken. AVX-512 does without.

    Raises:
        EngineError: the file does not load, or the context does not fit into memory.
    """

    @llama_cpp.llama_progress_callback
    def read(share: float, data: Any) -> bool:
        loading()
        return True

    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.progress_callback = read
    if settings.gpu_layers >= 0:
        model_params.n_gpu_layers = settings.gpu_layers
    model_params.use_extra_bufts = not amx_broken() if repack is None else repack
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    if not model:
        raise EngineError(f"llama.cpp cannot load {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = settings.slots + settings.parked
    params.kv_unified = settings.kv_unified
    params.n_ctx = settings.context * (settings.slots + settings.parked)
    params.n_batch = params.n_ubatch = BATCH
    params.n_outputs_max = params.n_outputs_max_per_seq = logits_rows(settings)
    params.n_threads = params.n_threads_batch = settings.threads
    params.no_perf = True
    if settings.flash_attention is not None:
        params.flash_attn_type = int(settings.flash_attention)
    params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{settings.kv_type}")
    ctx = llama_cpp.llama_init_from_model(model, params)
    if not ctx:  # for want of memory, or as some heads or devices have no cache of such a type: its log says which
        raise EngineError(
            f"llama.cpp cannot hold {settings.slots} + {settings.parked} branches of {settings.context} tokens; "
            f"lower sampler.slots, or write another sampler.kv_type than {settings.kv_type}"
        )
    if settings.lora:
        _apply(model, ctx, settings.lora)
    return model, ctx


def logits_rows(settings: EngineSettings) -> int:
    """Count the rows of logits that one decode may ask for, at most; llama.cpp wants one for each sequence, too."""
    return min(BATCH, settings.slots + max(settings.prefill_chunk, settings.parked))


def _apply(model: Any, ctx: Any, path: str) -> None:
    adapter = llama_cpp.llama_adapter_lora_init(model, path.encode())
    if not adapter:
        raise EngineError(f"llama.cpp cannot load the adapter {path}")
    # The model owns the adapter from here on (llama.h), and frees it with itself.
    adapters, scales = (type(adapter) * 1)(adapter), (ctypes.c_float * 1)(1.0)
    if code := llama_cpp.llama_set_adapters_lora(ctx, adapters, 1, scales):
        raise EngineError(f"llama.cpp does not take the adapter {path}: code {code}")


class Batch:
    """A llama_batch over numpy arrays, one sequence id for each token."""

    def __init__(self, ctx: Any, vocabulary: int):
        self.ctx = ctx
        self.vocabulary = vocabulary
        self.token, self.pos, self.seq = (np.zeros(BATCH, dtype=np.int32) for _ in range(3))
        self.n_seq = np.ones(BATCH, dtype=np.int32)
        self.wanted = np.zeros(BATCH, dtype=np.int8)
        # seq_id is an array of pointers; each points to its own element of `seq`.
        self.seq_pointers = self.seq.ctypes.data + np.arange(BATCH, dtype=np.uintp) * self.seq.itemsize
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self.token, llama_cpp.llama_token),
            pos=_pointer(self.pos, llama_cpp.llama_pos),
            n_seq_id=_pointer(self.n_seq, ctypes.c_int32),
            seq_id=_pointer(self.seq_pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=_pointer(self.wanted, ctypes.c_int8),
        )
        self.clear()

    def clear(self) -> None:
        self.size = self.rows = 0

    def add(self, seq: int, tokens: list[int], position: int, wanted: int) -> None:
        """Add consecutive tokens of a sequence; the last `wanted` ask for logits."""
        end = self.size + len(tokens)
        self.token[self.size : end] = tokens
        self.pos[self.size : end] = np.arange(position, position + len(tokens))
        self.seq[self.size : end] = seq
        self.wanted[self.size : end] = 0
        self.wanted[end - wanted : end] = 1
        self.size, self.rows = end, self.rows + wanted

    def decode(self) -> None:
        """Run llama.cpp, to the end also where a GPU computes."""
        self.started = time.perf_counter()
        self.struct.n_tokens = self.size
        if code := llama_cpp.llama_decode(self.ctx, self.struct):
            raise EngineError(f"llama_decode failed with code {code} on {self.size} tokens")
        llama_cpp.llama_synchronize(self.ctx)

    def logits(self) -> np.ndarray:
        """Return what was decoded, (rows, vocabulary), valid until the next decode."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.ctx), shape=(self.rows, self.vocabulary))


def _pointer(array: np.ndarray, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class _Tried(msgspec.Struct, frozen=True):
    works: bool


def amx_broken() -> bool:
    """Say whether llama.cpp would repack weights for AMX here and then die, or compute something else."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info() and not amx_works()


def amx_works(command: Sequence[str] = tuple(helper("genius_lite.sampler.llama"))) -> bool:
    """Say whether AMX gives the logits that llama.cpp gives without; remembered.

    The command tries it, and ends with 0 if so, with 3 if it gives others.
    """
    if found := recall("amx", (), _Tried):
        return found.works
    try:
        status = attempt(command, _PATIENCE).returncode
    except subprocess.TimeoutExpired:
        return False  # a busy machine may have been the reason, so it is tried again
    if status in (0, _DIFFERS) or (fate(status) and status != -KILLED):  # nothing else says anything of AMX
        remember("amx", (), _Tried(status == 0))
    return status == 0


def main() -> None:
    """Exit with 0 if a model's logits are the same with repacked weights as without."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows deletes no file that is mapped
        model = Path(folder) / "model.gguf"
        _write_model(model)
        plain_TV, repacked_TV = (_logits(model, repack=repack) for repack in (False, True))
    if not np.abs(repacked_TV - plain_TV).max() <= _DIFFERENCE * np.abs(plain_TV).max():
        print("the logits differ", file=sys.stderr)
        raise SystemExit(_DIFFERS)


def _write_model(path: Path) -> None:
    """Write one random layer in Q8_0, with a vocabulary of numbers."""
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
    """Return logits (tokens, vocabulary) of a few tokens decoded together."""
    # Two threads: each loads the tile configuration for itself.
    _, context = load(str(path), EngineSettings(slots=1, context=_WIDTH, threads=2, gpu_layers=0), repack=repack)
    batch = Batch(context, _WIDTH)
    batch.add(0, list(range(_TOKENS)), 0, _TOKENS)
    batch.decode()
    return batch.logits().copy()


if __name__ == "__main__":
    main()
