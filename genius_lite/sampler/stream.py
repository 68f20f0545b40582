"""One sequence whose tokens are handed over as they are sampled: for a reader who waits for them.

Unlike the worker it runs in the process that asks. Tokens of the sequence that stay the same are decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.sampler.cache import common_prefix
from genius_lite.sampler.llama import BATCH, Batch, load
from genius_lite.sampler.messages import EngineSettings, Sampling
from genius_lite.sampler.sampling import Rows, uniform


class Stream:
    """A loaded model with the one sequence. Made by `open_stream`."""

    def __init__(self, model: Any, ctx: Any, context: int, template: Mapping[str, Any]):
        self.vocabulary = Vocabulary(model, template)
        self.context = context
        self._ctx = ctx
        self._batch = Batch(ctx, self.vocabulary.size)
        self._decoded: list[int] = []

    def sample(self, path: list[int], sampling: Sampling, seed: int, limit: int) -> Iterator[int]:
        """Yield the tokens of a response to `path`, `limit` at most, until one ends it, which is not handed over.

        Args:
            seed: of the draws, as of a branch of the worker.

        Raises:
            EngineError: llama.cpp cannot decode.
        """
        rows = self._read(path)
        for position in range(min(limit, self.context - len(path))):
            token = rows.draw(0, uniform(seed, position), sampling)
            if self.vocabulary.ends[token]:
                return
            yield token
            rows = self._decode([token])

    def _read(self, path: list[int]) -> Rows:
        """Decode what of the path is not decoded yet; the logits after its last token."""
        shared = min(common_prefix(path, self._decoded), len(path) - 1)  # the last token's logits are needed
        memory: Any = llama_cpp.llama_get_memory(self._ctx)
        if not llama_cpp.llama_memory_seq_rm(memory, 0, shared, -1):  # a recurrent model cannot go back
            llama_cpp.llama_memory_clear(memory, True)
            shared = 0
        del self._decoded[shared:]
        return self._decode(path[shared:])

    def _decode(self, tokens: list[int]) -> Rows:
        """Append to the sequence; the logits after the last of `tokens`, one at least."""
        while True:
            part, tokens = tokens[:BATCH], tokens[BATCH:]
            self._batch.clear()
            self._batch.add(0, part, len(self._decoded), wanted=0 if tokens else 1)
            logits_RV = self._batch.decode()
            self._decoded += part
            if not tokens:
                return Rows(logits_RV)


@contextmanager
def open_stream(model: Path, context: int, threads: int, template: Mapping[str, Any] | None = None) -> Iterator[Stream]:
    """Load a model with room for `context` tokens, all of it on the GPU where llama.cpp has one.

    Args:
        template: variables of its chat template.

    Raises:
        EngineError: the model does not load, or the context does not fit into memory.
    """
    handle, ctx = load(str(model), EngineSettings(slots=1, context=context, threads=threads))
    stream = Stream(handle, ctx, context, template or {})
    try:
        yield stream
    finally:
        stream.vocabulary.close()
        llama_cpp.llama_free(ctx)
        llama_cpp.llama_model_free(handle)
