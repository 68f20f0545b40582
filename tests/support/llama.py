"""`llama_cpp.Llama`, which tests and benchmarks set beside our engine, on machines where llama.cpp's AMX is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import llama_cpp
import pytest

from genius_lite.sampler.llama import amx_broken


@contextmanager
def without_broken_amx() -> Iterator[None]:
    """Let `Llama` do without repacked weights where those are broken: it has no parameter for it, as our engine has."""
    with pytest.MonkeyPatch.context() as patch:
        if amx_broken():
            patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", _without_repacking)
        yield


def _without_repacking() -> llama_cpp.llama_model_params:
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    return params
