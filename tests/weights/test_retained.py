"""Does the file say what was learned: the check that llama.cpp makes from outside."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner
from genius_lite.records import PreferencePair
from genius_lite.rundir.folder import RunDir
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter, write_lora
from genius_lite.weights.importing import Base
from genius_lite.weights.merge import merge, requantize, round_base
from genius_lite.weights.retained import CHECKED, SCORED, check, compare, gaps, one_of_each
from tests.conftest import FORKED_HELPERS
from tests.support.adapters import torch_scores

pytestmark = FORKED_HELPERS

SETTINGS = EngineSettings(slots=2, context=256, threads=2, flash_attention=False)


def pair(query: str, first: int = 50) -> PreferencePair:
    return PreferencePair(query, 0, [40, 41], [first, 51, 52], [60, 61], 0.0, 0.0, 0.0, 0.0, True, True)


PAIRS = [
    PreferencePair(f"q{q}", 0, [40 + q, 41], [50, 51, 52 + q], [60, 61 + q], 0.0, 0.0, 0.0, 0.0, True, True)
    for q in range(4)
]


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory) -> SimpleNamespace:
    """The tiny model with an adapter that really learned the pairs, also as a LoRA GGUF."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "work").mkdir()
    cfg = Learner(lr=5e-3, batch_pairs=2, rank=4, lora_alpha=8, epochs=4)
    job = Training(tiny.hf_checkpoint, None, PAIRS, [], cfg, "cpu", "fp32", (0, 1), RunDir(folder / "work"))
    report = train_adapter(job, folder / "adapter")
    base = Base(gguf_file.read(tiny.gguf), tiny.hf_checkpoint)
    write_lora(base, folder / "adapter", folder / "lora.gguf")
    adapter = Adapter.load(folder / "adapter", base)
    return SimpleNamespace(base=base, adapter=adapter, lora=folder / "lora.gguf", margin=report.margin)


def test_a_16_bit_file_has_the_margin_of_the_adapter_at_run_time_and_that_of_the_learner(learned, tmp_path):
    merge(learned.base, learned.adapter, "F16", tmp_path / "p.gguf")
    found = check(tmp_path / "p.gguf", learned.base.gguf.path, learned.lora, PAIRS, SETTINGS, tmp_path / "log")
    assert learned.margin > 0.5, "something must have been learned for this to show anything"
    assert found.questions == len(PAIRS)
    assert found.learned == pytest.approx(learned.margin, rel=0.02)
    assert found.margin == pytest.approx(found.learned, rel=0.01)
    assert found.kept == found.margin / found.learned
    assert found.error < 0.02


def test_a_rounded_file_is_told_beside_its_base_rounded_alike(learned, tmp_path):
    round_base(learned.base, learned.adapter, "Q8_0", tmp_path / "base.gguf")
    merge(learned.base, learned.adapter, "Q8_0", tmp_path / "p.gguf")
    found = check(tmp_path / "p.gguf", tmp_path / "base.gguf", learned.lora, PAIRS, SETTINGS, tmp_path / "log")
    assert found.learned == pytest.approx(learned.margin, rel=0.1)
    assert found.kept == pytest.approx(1, abs=0.2)


def test_a_file_without_what_was_learned_keeps_nothing(learned, tmp_path):
    requantize(learned.base.gguf, "F16", tmp_path / "p.gguf")
    found = check(tmp_path / "p.gguf", learned.base.gguf.path, learned.lora, PAIRS, SETTINGS, tmp_path / "log")
    assert found.margin == pytest.approx(0, abs=1e-3)
    assert found.kept == pytest.approx(0, abs=1e-3)


def test_the_gaps_of_some_pairs_are_theirs_whatever_is_asked_beside_them(learned, tmp_path):
    file = learned.base.gguf.path
    together = gaps(file, SETTINGS, PAIRS, tmp_path / "log")
    alone = [gaps(file, SETTINGS, [p], tmp_path / "log")[0] for p in PAIRS]
    assert together == pytest.approx(alone, abs=1e-3)
    chosen, rejected = PAIRS[0].chosen_tokens, PAIRS[0].rejected_tokens
    swapped = msgspec.structs.replace(PAIRS[0], chosen_tokens=rejected, rejected_tokens=chosen)
    assert gaps(file, SETTINGS, [swapped], tmp_path / "log")[0] == pytest.approx(-alone[0], abs=1e-3)
    assert (tmp_path / "log").is_file()


def test_the_gap_is_that_of_torch_from_where_the_responses_part_as_far_as_is_scored(tiny, tmp_path):
    rng, shared = np.random.default_rng(0), [70, 71, 72]
    chosen, rejected = (rng.integers(40, 120, count).tolist() for count in (SCORED + 30, SCORED + 9))
    chosen[0], rejected[0] = 50, 60
    pairs = [
        msgspec.structs.replace(pair("short"), chosen_tokens=[*shared, 50, 51], rejected_tokens=[*shared, 60]),
        msgspec.structs.replace(pair("long"), chosen_tokens=[*shared, *chosen], rejected_tokens=[*shared, *rejected]),
    ]
    found = gaps(tiny.gguf, SETTINGS, pairs, tmp_path / "log")
    tiny.model.eval()
    for gap, asked in zip(found, pairs, strict=True):
        sums = [
            torch_scores(tiny.model, asked.prompt_tokens, response[: len(shared) + SCORED]).sum()
            for response in (asked.chosen_tokens, asked.rejected_tokens)
        ]
        assert gap == pytest.approx(sums[0] - sums[1], abs=0.2)
        assert abs(gap) > 0.5


def test_compare_by_hand():
    base, policy, applied = (np.array(x) for x in ([1.0, 2.0, -1.0], [2.0, 2.5, 1.0], [3.0, 2.0, 2.0]))
    found = compare(policy, base, applied)
    # Margins 1, 0.5 and 2 by the file; 2, 0 and 3 by the adapter. Kept 3.5 / 5; residuals -0.4, 0.5 and -0.1.
    assert found.questions == 3
    assert found.margin == pytest.approx(3.5 / 3)
    assert found.learned == pytest.approx(5 / 3)
    assert found.kept == pytest.approx(0.7)
    spread = ((0.16 + 0.25 + 0.01) / 2) ** 0.5
    assert found.error == pytest.approx(spread / 3**0.5 / (5 / 3))


def test_where_nothing_was_learned_there_is_nothing_to_keep():
    base, policy = np.zeros(2), np.array([1.0, 2.0])
    for applied in (np.zeros(2), np.array([-1.0, -2.0]), np.array([1.0, -1.0])):
        found = compare(policy, base, applied)
        assert (found.kept, found.error, found.margin) == (None, None, 1.5)


def test_one_question_has_no_error_and_all_kept_none_either():
    one = compare(np.array([2.0]), np.array([1.0]), np.array([3.0]))
    assert (one.questions, one.kept, one.error) == (1, 0.5, None)
    exact = compare(np.array([2.0, 4.0]), np.array([1.0, 1.0]), np.array([2.0, 4.0]))
    assert (exact.kept, exact.error) == (1, 0)


def test_one_pair_of_each_question_spread_evenly():
    pairs = [pair(f"q{q}", first=n) for q in range(20) for n in range(50, 53)]
    chosen = one_of_each(pairs, 5)
    assert [p.query_id for p in chosen] == ["q0", "q5", "q10", "q14", "q19"]
    assert all(p.chosen_tokens[0] == 50 for p in chosen), "the first of each"
    assert [p.query_id for p in one_of_each(pairs, 20)] == [f"q{q}" for q in range(20)]
    assert one_of_each(pairs, 99) == one_of_each(pairs, 20)
    usual = [int(p.query_id[1:]) for p in one_of_each(pairs)]
    assert (len(usual), usual[0], usual[-1]) == (CHECKED, 0, 19)
    apart = [b - a for a, b in pairwise(usual)]
    assert max(apart) - min(apart) <= 1
    assert one_of_each(pairs, 1) == [pairs[0]]
    assert one_of_each(pairs[:3]) == [pairs[0]]
    mixed = one_of_each([pair("b"), pair("a"), pair("b", first=51)])
    assert sorted((p.query_id, p.chosen_tokens[0]) for p in mixed) == [("a", 50), ("b", 50)]
