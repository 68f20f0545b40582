from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.faults import raw
from tests.faults.sound import SIZES


@pytest.fixture(scope="session")
def smollm2_fields(smollm2) -> dict[str, Any]:
    """What SmolLM2's file says of its vocabulary; GGUFReader takes seven seconds to read it."""
    held = {entry.key.decode(): entry.value for entry in raw.parse(smollm2, SIZES).entries}
    texts = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    found: dict[str, Any] = {name: [text.decode() for text in raw.strings(held[name])] for name in texts}
    kinds = held["tokenizer.ggml.token_type"][12:]
    return found | {
        "tokenizer.ggml.token_type": [*struct.unpack(f"<{len(kinds) // 4}i", kinds)],
        "tokenizer.ggml.pre": held["tokenizer.ggml.pre"][8:].decode(),
    }
