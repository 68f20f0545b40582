"""What a quantized file keeps of what was learned, measured by llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import msgspec
import numpy as np
import pytest
import torch
from genius_lite.weights.policy import _choose, _loses, measured_policy, policy_gguf

from genius_lite.errors import UserError
from genius_lite.learner.importance import Importance
from genius_lite.learner.model import load_policy, response_logps
from genius_lite.learner.packing import rows
from genius_lite.learner.train import Training, train_adapter
from genius_lite.recipe import Learner, Quantize
from genius_lite.records import PreferencePair
from genius_lite.report.summary import retained_lines
from genius_lite.rundir import IMPORTANCE_FILE, RunDir
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file, imatrix
from genius_lite.weights.importing import MAP_FILE, Base
from genius_lite.weights.mapping import TensorMap
from genius_lite.weights.merge import BASE_FILE
from genius_lite.weights.retained import Probe, Retained, Scores, compare, scores

SETTINGS = EngineSettings(slots=2, context=256, threads=2)
PAIRS = [
    PreferencePair(f"q{q}", 0, [40 + q, 41], [50, 51, 52 + q], [60, 61 + q], 0.0, 0.0, 0.0, 0.0, True, True)
    for q in range(4)
]


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory) -> SimpleNamespace:
    """The tiny model with an adapter that really learned the pairs."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "work").mkdir()
    cfg = Learner(lr=5e-3, batch_pairs=2, rank=4, lora_alpha=8, epochs=4)
    job = Training(tiny.master, None, PAIRS, [], cfg, "cpu", "fp32", (0, 1), RunDir(folder / "work"))
    report = train_adapter(job, folder / "adapter")
    gathered = folder / "adapter" / IMPORTANCE_FILE
    imatrix.write(gathered, TensorMap.load(tiny.master / MAP_FILE), "pairs", folder / "adapter" / imatrix.IMATRIX_FILE)
    return SimpleNamespace(**vars(tiny), adapter=folder / "adapter", margin=report.margin)


def base_of(learned) -> Base:
    return Base(gguf_file.read(learned.gguf), learned.master)


def measure(learned, out, cfg: Quantize, speed=lambda file: 1.0, pairs=PAIRS) -> dict:
    return measured_policy(
        base_of(learned),
        learned.adapter,
        cfg,
        pairs,
        SETTINGS,
        learned.gguf,
        speed,
        out,
        out.with_name("log"),
        lambda n: None,
    )


def test_a_16_bit_file_keeps_the_learners_margin(learned, tmp_path):
    found = measure(learned, tmp_path / "p.gguf", Quantize(type="F16"))
    (row,) = found["tried"]
    assert row["margin"] == pytest.approx(learned.margin, rel=0.02)
    assert row["kept"] == pytest.approx(1)
    assert row["kl"] == pytest.approx(0, abs=1e-4)
    assert row["perplexity"] == pytest.approx(1, abs=1e-3)
    assert not list(tmp_path.glob("*.work"))


def test_types_are_compared_and_auto_takes_the_fastest_that_keeps_enough(learned, tmp_path):
    rates = {"Q4_0": 9.0, "Q8_0": 5.0, "F16": 2.0}
    cfg = Quantize(type="auto", among=["Q4_0", "Q8_0", "F16"], keep=0.5, ablate_imatrix=True)
    found = measure(learned, tmp_path / "a.gguf", cfg, speed=lambda file: rates[file.name.split("-")[0]])
    assert [(row["type"], row["importance"]) for row in found["tried"]] == [
        (kind, with_matrix) for kind in cfg.among for with_matrix in (True, False)
    ]
    kept = {row["type"]: row["kept"] for row in found["tried"] if row["importance"]}
    error = {row["type"]: row["error"] for row in found["tried"] if row["importance"]}
    enough = [kind for kind in rates if abs(kept[kind] - 1) + error[kind] <= 0.5]
    assert found["type"] == max(enough, key=rates.__getitem__)
    assert not found["loses"]
    types = {t.tensor_type for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert getattr(gguf.GGMLQuantizationType, found["type"]) in types
    kl = {row["type"]: row["kl"] for row in found["tried"] if row["importance"]}
    assert kl["Q4_0"] > kl["Q8_0"] > kl["F16"]


def test_where_no_type_keeps_enough_the_adapter_itself_does(learned, tmp_path):
    found = measure(learned, tmp_path / "a.gguf", Quantize(type="auto", among=["Q4_0"], keep=0.999))
    merged, beside = found["tried"]
    assert (found["type"], found["keeps"], merged["type"], beside["type"]) == ("Q4_0", False, "Q4_0", "adapter")
    assert beside["kept"] == pytest.approx(1, abs=0.02)
    assert beside["kl"] < merged["kl"] / 10
    assert (tmp_path / "a.gguf").exists() and not list(tmp_path.glob("*.work"))


def row(kind: str, kept: float | None, error: float = 0.02, kl: float = 0.1) -> Retained:
    return Retained(kind, 1.0, kept, error, kl, 1.0, True)


def test_the_choice_goes_by_what_is_sure():
    cfg = Quantize(type="auto", keep=0.9)
    tried = [(row("Q4_0", 0.4), 9.0, Path()), (row("Q6_K", 0.95), 5.0, Path()), (row("Q8_0", 1.0), 7.0, Path())]
    assert _choose(tried, cfg)[0].type == "Q8_0"
    lost_nothing = (row("Q4_0", None), 9.0, Path())
    assert _choose([lost_nothing, *tried[1:]], cfg)[0].type == "Q4_0"
    # Noise that says 150 % is no proof; then the file closest to the F16 merge is the safe one.
    noisy = [(row("Q4_0", 1.5, 0.8, kl=0.2), 9.0, Path()), (row("Q6_K", 0.8, 0.7, kl=0.01), 5.0, Path())]
    assert _choose(noisy, cfg)[0].type == "Q6_K"
    assert [_loses(t[0], cfg) for t in [*tried, *noisy, lost_nothing]] == [True, False, False, False, False, False]
    # A margin that grew by rounding was not kept either.
    grown = [(row("Q4_0", 1.4, 0.05, kl=0.2), 9.0, Path()), tried[2]]
    assert _choose(grown, cfg)[0].type == "Q8_0"
    assert _loses(grown[0][0], cfg)


def test_the_other_pairs_are_scored_only_where_eight_leave_it_open(learned, tmp_path, monkeypatch):
    many = [msgspec.structs.replace(pair, query_id=f"{pair.query_id}-{n}") for n in range(5) for pair in PAIRS]
    asked = []

    def counted(file: Path, settings: EngineSettings, wanted: Probe, log: Path) -> Scores:
        asked.append(len(wanted.pairs))
        return scores(file, settings, wanted, log)

    monkeypatch.setattr("genius_lite.weights.policy.scores", counted)
    found = measure(learned, tmp_path / "sure.gguf", Quantize(type="F16"), pairs=many)
    assert asked == [10] * 4
    assert found["tried"][0]["kept"] == pytest.approx(1)
    asked.clear()
    # Kept is 1, so that a limit of exactly 1 is always a near thing.
    found = measure(learned, tmp_path / "open.gguf", Quantize(type="F16", keep=1.0), pairs=many)
    assert asked == [10] * 4 * 2
    assert found["tried"][0]["margin"] == pytest.approx(learned.margin, rel=0.02)


def test_scores_of_two_probes_are_those_of_both_together(learned, tmp_path):
    wanted = Probe(PAIRS * 4, [(PAIRS[0].prompt_tokens, [9, 8])])
    first, second = wanted.parts()
    assert [len(part.pairs) for part in (first, second)] == [8, 8]
    assert (first.responses, second.responses) == (wanted.responses, [])
    whole, some, others = (scores(learned.gguf, SETTINGS, part, tmp_path / "log") for part in (wanted, first, second))
    both = some + others
    assert sorted(both.gaps_P) == pytest.approx(sorted(whole.gaps_P), abs=1e-3)
    assert both.chosen_C.sum() == pytest.approx(whole.chosen_C.sum(), abs=1e-2)
    assert len(both.chosen_C) == len(whole.chosen_C) == 4 * 4 * 3
    assert both.sampled_S == pytest.approx(whole.sampled_S, abs=1e-3)


def test_keeping_too_little_is_warned_of():
    rows = [{**row("Q4_0", 0.4).as_dict(), "tokens_per_s": None}]
    lines = retained_lines({"type": "Q4_0", "loses": True, "tried": rows}, 0.9)
    assert lines[0].startswith("Q4_0: keeps 40% +- 2% of the margin")
    assert "warning: Q4_0 does not keep what was learned to within 10%" in lines[1]


def test_retained_by_hand():
    def score(gaps, chosen, sampled):
        return Scores(np.array(gaps), np.array([chosen]), np.array(sampled))

    got = compare(
        "Q4_0",
        policy=score([5.0, 4.0], -1.1, [-1.0, -2.0]),
        base=score([4.0, 4.0], 0, [0]),
        exact=score([6.0, 5.0], -1.0, [-0.9, -1.8]),
        exact_base=score([4.0, 5.0], 0, [0]),
        importance=True,
    )
    # Learned 2 and 0 nats, kept 1 and 0: the difference is -1 and 0, its standard error 0.5.
    assert (got.margin, got.kept, got.error) == pytest.approx((0.5, 0.5, 0.5))
    assert got.kl == pytest.approx(((np.exp(-0.1) - 1 + 0.1) + (np.exp(-0.2) - 1 + 0.2)) / 2)
    assert got.perplexity == pytest.approx(np.exp(0.1))


def test_importance_is_the_mean_square_of_what_flows_in(tiny, tmp_path):
    policy = load_policy(tiny.master, None, Learner(rank=4), "cpu", "fp32", 0)
    importance, seen = Importance(policy), []
    layer = policy.get_base_model().model.layers[1].mlp.down_proj
    layer.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad(), importance.watched():
        response_logps(policy, rows([([5, 6], [7, 8]), ([9, 5], [6, 5])]))
        response_logps(policy, rows([([5], [7])]))
    importance.save(tmp_path / "i.safetensors")
    tensor_map = TensorMap.load(tiny.master / MAP_FILE)
    imatrix.write(tmp_path / "i.safetensors", tensor_map, "responses", tmp_path / "i.gguf")
    matrix = imatrix.load(tmp_path / "i.gguf")
    expected = torch.cat([x.flatten(0, -2) for x in seen]).square().mean(0).numpy()
    assert len(torch.cat([x.flatten(0, -2) for x in seen])) == 10
    np.testing.assert_allclose(matrix["blk.1.ffn_down.weight"], expected, rtol=1e-5)
    assert len(matrix) == 2 * 7
    before = len(seen)
    response_logps(policy, rows([([5], [7])]))
    assert (len(seen), importance.tokens) == (before + 1, 10)  # not watched any more


def test_the_matrix_reaches_the_quantizer_and_its_file_reads_back(learned, tmp_path):
    written = learned.adapter / imatrix.IMATRIX_FILE
    read = {t.name: t.data for t in gguf.GGUFReader(written).tensors}
    for name, values in imatrix.load(written).items():
        np.testing.assert_allclose(read[f"{name}.in_sum2"][0] / read[f"{name}.counts"][0, 0], values, rtol=1e-6)
    policy_gguf(base_of(learned), learned.adapter, "Q4_0", tmp_path / "with.gguf")
    written.rename(tmp_path / "aside")
    policy_gguf(base_of(learned), learned.adapter, "Q4_0", tmp_path / "without.gguf")
    (tmp_path / "aside").rename(written)
    files = [gguf_file.read(tmp_path / f"{name}.gguf") for name in ("with", "without")]
    assert any(
        not np.array_equal(files[0].raw(a), files[1].raw(b)) for a, b in zip(*(f.tensors for f in files), strict=True)
    )


def test_an_adapter_of_another_model_is_refused(learned, tmp_path):
    (learned.adapter / BASE_FILE).write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(UserError, match="was trained on another model"):
        policy_gguf(base_of(learned), learned.adapter, "F16", tmp_path / "x.gguf")
    (learned.adapter / BASE_FILE).unlink()
