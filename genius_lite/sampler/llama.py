"""The part of llama.cpp's C API that the engine uses: a model with its context, and a batch of tokens."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np

from genius_lite.sampler import amx
from genius_lite.sampler.messages import EngineSettings

BATCH = 512  # tokens of one llama_decode, at most


class EngineError(RuntimeError):
    """llama.cpp could not load the model, or could not decode."""


def load(path: str, settings: EngineSettings, repack: bool | None = None) -> tuple[Any, Any]:
    """A model and a context for it (`llama_model *`, `llama_context *`).

    Args:
        repack: lay weights out anew for this processor; None: unless that is broken. AVX-512 does without.

    Raises:
        EngineError: the file does not load, or the context does not fit into memory.
    """
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    if settings.gpu_layers >= 0:
        model_params.n_gpu_layers = settings.gpu_layers
    model_params.use_extra_bufts = not amx.broken() if repack is None else repack
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    if not model:
        raise EngineError(f"llama.cpp cannot load {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = settings.slots + settings.parked
    params.kv_unified = settings.kv_unified
    params.n_ctx = settings.context * (settings.slots + settings.parked)
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = settings.threads
    params.no_perf = True
    if settings.flash_attention is not None:
        params.flash_attn_type = int(settings.flash_attention)
    params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{settings.kv_type}")
    ctx = llama_cpp.llama_init_from_model(model, params)
    if not ctx:
        raise EngineError(
            f"llama.cpp cannot hold {settings.slots} + {settings.parked} branches of {settings.context} tokens; "
            "lower sampler.slots"
        )
    if settings.lora:
        _apply(model, ctx, settings.lora)
    return model, ctx


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
        self.logits = np.zeros(BATCH, dtype=np.int8)
        # seq_id is an array of pointers; each points to its own element of `seq`.
        self.seq_pointers = self.seq.ctypes.data + np.arange(BATCH, dtype=np.uintp) * self.seq.itemsize
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self.token, llama_cpp.llama_token),
            pos=_pointer(self.pos, llama_cpp.llama_pos),
            n_seq_id=_pointer(self.n_seq, ctypes.c_int32),
            seq_id=_pointer(self.seq_pointers, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=_pointer(self.logits, ctypes.c_int8),
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
        self.logits[self.size : end] = 0
        self.logits[end - wanted : end] = 1
        self.size, self.rows = end, self.rows + wanted

    def decode(self) -> np.ndarray:
        """Run llama.cpp; logits (rows, vocabulary), valid until the next decode."""
        self.started = time.perf_counter()
        self.struct.n_tokens = self.size
        if code := llama_cpp.llama_decode(self.ctx, self.struct):
            raise EngineError(f"llama_decode failed with code {code} on {self.size} tokens")
        if not self.rows:
            return np.empty((0, self.vocabulary), dtype=np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.ctx), shape=(self.rows, self.vocabulary))


def _pointer(array: np.ndarray, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
