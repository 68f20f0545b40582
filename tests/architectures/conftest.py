from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.converter import convert
from tests.architectures.zoo import ARCHITECTURES


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """A folder with every tiny model as its makers publish it (`NAME/`) and as a GGUF (`NAME.gguf`)."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, architecture in ARCHITECTURES.items():
        architecture.build(folder / name)
    (folder / "converter.log").write_text(convert([folder / name for name in ARCHITECTURES]))
    return folder
