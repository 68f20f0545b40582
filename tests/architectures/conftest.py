from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

from genius_lite.learner.model import load_policy
from genius_lite.recipe import Learner
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.full_precision import load_weights, write_full_precision
from genius_lite.weights.importing import Base, check_supported, save_checkpoint
from genius_lite.weights.merge import Kept, merge, requantize
from tests.architectures.converter import convert
from tests.architectures.zoo import ARCHITECTURES
from tests.support.adapters import random_adapter


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """A folder with every tiny model as its makers publish it (`NAME/`) and as a GGUF (`NAME.gguf`)."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, architecture in ARCHITECTURES.items():
        architecture.build(folder / name)
    (folder / "converter.log").write_text(convert([folder / name for name in ARCHITECTURES]))
    return folder


class Imported:
    """A tiny model of the zoo, imported with its own weights, and an adapter on it; each made when it is asked for."""

    def __init__(self, zoo: Path, name: str, folder: Path):
        self.name, self.zoo, self.folder = name, zoo, folder

    @cached_property
    def base(self) -> Base:
        """A Q8_0 file, in place of whose matrices the model's own are written."""
        requantize(gguf_file.read(self.zoo / f"{self.name}.gguf"), "Q8_0", self.folder / "quantized.gguf")
        quantized = gguf_file.read(self.folder / "quantized.gguf")
        check_supported(quantized, with_weights=True)
        model, made = load_weights(self.zoo / self.name, quantized), self.folder / "model.gguf"
        found = write_full_precision(quantized, model.state_dict(), self.zoo / self.name, made, lambda n: None)
        save_checkpoint(gguf_file.read(made), model, found, self.folder / "hf-checkpoint")
        return Base(gguf_file.read(made), self.folder / "hf-checkpoint")

    @cached_property
    def adapter(self) -> Path:
        """A random one on every linear layer, large enough to matter."""
        random_adapter(self.base.hf_checkpoint, self.folder / "adapter", spread=0.03)
        return self.folder / "adapter"

    @cached_property
    def policy(self) -> Any:
        """The learner's model with the adapter, in fp32."""
        return load_policy(self.base.hf_checkpoint, self.adapter, Learner(), "cpu", "fp32", seed=0)

    @cached_property
    def merged(self) -> tuple[Path, Kept]:
        """A file with the adapter in it, of the types of its base, and what it keeps of the update."""
        path = self.folder / "merged.gguf"
        return path, merge(self.base, Adapter.load(self.adapter, self.base), "source", path)


@pytest.fixture(scope="session")
def imported(zoo, tmp_path_factory) -> Callable[[str], Imported]:
    """A model by its name, imported once."""
    return cache(lambda name: Imported(zoo, name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=ARCHITECTURES)
def model(request, imported) -> Imported:
    return imported(request.param)
