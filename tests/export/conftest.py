from __future__ import annotations

import gguf
import pytest


@pytest.fixture(scope="session")
def smollm2_fields(smollm2) -> dict:
    """The metadata of SmolLM2's file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(smollm2).fields.items()}
