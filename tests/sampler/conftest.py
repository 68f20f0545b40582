from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genius_lite.weights import gguf_file

POISONED = 255  # the token whose embedding is NaN


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory) -> Path:
    """A tiny model that gives NaN after a path with one certain token, and is sound otherwise."""
    from tests.support.models import tiny_gguf

    path = tmp_path_factory.mktemp("poisoned") / "tiny.gguf"
    tiny_gguf(path, "qwen2")
    (embeddings,) = [t for t in gguf_file.read(path).tensors if t.name == "token_embd.weight"]
    raw = np.memmap(path, np.float16, "r+", offset=embeddings.offset, shape=embeddings.shape)
    raw[POISONED] = np.nan
    raw.flush()
    return path
