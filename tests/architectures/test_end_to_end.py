"""Whole runs from `model.weights`, of families that no import from a GGUF leads to."""

from __future__ import annotations

import pytest

from genius_lite import Recipe, run
from genius_lite.weights import gguf_file
from genius_lite.weights.merge import requantize
from tests.conftest import FORKED_HELPERS

pytestmark = FORKED_HELPERS


@pytest.mark.parametrize("name", ["granitehybrid", "gemma3-vision"])
def test_a_round_is_built_upon_the_one_before(zoo, tmp_path, name):
    requantize(gguf_file.read(zoo / f"{name}.gguf"), "Q8_0", tmp_path / "m.gguf")
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\nfour\nfive\nsix\n")
    recipe = Recipe.model_validate({
        "model": {"gguf": str(tmp_path / "m.gguf"), "weights": str(zoo / name)},
        "queries": {"source": str(tmp_path / "q.txt")},
        "out": str(tmp_path / "run"),
        "rounds": 2,
        "foresight": {"beams": 2, "candidates": 2, "steps": 2, "max_tokens": 16, "temperature": 1.5},
        "pairs": {"truncated": "keep", "min_gap": 0},
        # The first round samples with the quantized file, in which a tiny model of random weights is another one.
        "learner": {"lr": 1e-3, "batch_pairs": 2, "holdout": 0.2, "parity_limit": 1.0},
        "quantize": {"type": "Q8_0"},
        "evaluate": {"sweep": []},
    })  # fmt: skip
    found = run(recipe)
    assert [report.round for report in found.rounds] == [1, 2]
    for report in found.rounds:
        assert report.quantized.kept > 0.95
    assert found.rounds[1].training.logprob_mismatch < 0.1, "the second samples with what was learned on"
