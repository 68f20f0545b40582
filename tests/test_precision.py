from __future__ import annotations

import pytest

from genius_lite import hardware


@pytest.mark.parametrize(
    ("native", "free", "expected"),
    [(True, 8e9, "bf16"), (True, 3.9e9, "nf4"), (False, 8e9, "fp32"), (False, 7.9e9, "nf4")],
)
def test_weights_are_quantized_only_where_they_would_take_too_much_memory(monkeypatch, native, free, expected):
    monkeypatch.setattr(hardware, "compute_in_bf16", lambda device: native)
    monkeypatch.setattr(hardware, "learner_free_memory", lambda device: free)
    assert hardware.learner_precision("auto", "cpu", sixteen=10**9) == expected
    assert hardware.learner_precision("bf16", "cpu", sixteen=10**9) == "bf16"
