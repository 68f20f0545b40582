"""What a round is sampled from with `policy: auto`, on tiny models whose files are said to be of some speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genius_lite.errors import Stopped
from genius_lite.export.bundle import export
from genius_lite.pipeline import stages, stand_in
from genius_lite.pipeline.backends import Search
from genius_lite.pipeline.round import Policy, Round
from genius_lite.recipe import Evaluate, Quantize, TargetType
from genius_lite.recipe.reader import parse
from genius_lite.records import Rollout
from genius_lite.rundir.lines import read_records
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import sha256
from tests.conftest import FORKED_HELPERS
from tests.support.finished import Done, Q, done, far_from_sampled

pytestmark = FORKED_HELPERS

PLAIN = EngineSettings(slots=1, context=256, threads=1)


@pytest.fixture(autouse=True)
def _measured_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(stand_in, "WORTH", 0)


def are_fast(monkeypatch, **speeds: float) -> list[str]:
    """Have files of these types decode so many tokens a minute, beside which no writing counts; lists what is asked."""
    asked = list[str]()

    def speed(model: Path, settings: EngineSettings) -> float:
        kind = next(t.type.name for t in gguf_file.read(model).tensors if t.name == "blk.0.ffn_up.weight")
        asked.append(f"{kind} beside" if settings.lora else kind)
        return speeds[kind] / 60

    monkeypatch.setattr(stand_in, "file_speed", speed)
    return asked


def chosen(made: Done, number: int) -> str:
    return json.loads((made.round(number) / "sampled.json").read_text())["file"]


def unevaluated(folder: Path, kind: TargetType = "source", **sections: Any) -> Done:
    folder.mkdir(exist_ok=True)
    more = {"evaluate": Evaluate(queries=0), "policy": "auto", "rounds": 1, **sections}
    return done(folder, Quantize(type=kind, check="never"), kind=Q.Q8_0, **more)


def test_a_faster_file_of_16_bits_samples_and_the_exported_one_is_evaluated(tmp_path, monkeypatch):
    asked = are_fast(monkeypatch, Q8_0=60, BF16=70, F16=83)
    made = done(tmp_path, Quantize(check="never"), kind=Q.Q8_0, policy="auto")
    assert asked == ["Q8_0", "BF16", "F16"] * 2, "the base's files, and then the merged ones"
    for number in (1, 2):
        assert chosen(made, number) == "F16"
        assert not (made.round(number) / "stand-in.gguf").exists(), "it is gone when the round is sampled"
        policy = gguf_file.read(made.round(number) / "policy.gguf")
        assert {t.type for t in policy.tensors} == {Q.Q8_0, Q.F32}
        assert sha256([policy.path]) == made.quantized(number)["sha256"]
    assert any(line.startswith("round 1 is sampled from F16; tokens/s here: ") for line in made.said)

    export(made.folder, 1, "gguf", ["F16"], tmp_path / "exact")
    (exact,) = (tmp_path / "exact").glob("*.gguf")
    sampled = read_records(made.round(2) / "rollouts.jsonl", Rollout)[:6]
    assert far_from_sampled(sampled, exact, PLAIN, tmp_path / "log") < 1e-3
    assert far_from_sampled(sampled, made.round(1) / "policy.gguf", PLAIN, tmp_path / "log") > 2e-3
    assert far_from_sampled(sampled, tmp_path / "tiny.gguf", PLAIN, tmp_path / "log") > 0.02


def test_a_policy_that_is_fast_samples_itself_and_is_measured_once(tmp_path, monkeypatch):
    are_fast(monkeypatch, Q8_0=80, BF16=82, F16=10)
    assert chosen(unevaluated(tmp_path / "a"), 1) == "its own file (F16)", "2 % are no difference; so its header says"
    monkeypatch.setattr(stand_in, "file_speed", lambda *_: pytest.fail("measured again"))
    assert chosen(unevaluated(tmp_path / "b"), 1) == "its own file (F16)"


def test_the_users_file_with_the_adapter_is_tried_where_rounds_have_another_type(tmp_path, monkeypatch):
    asked = are_fast(monkeypatch, Q8_0=90, Q4_0=60, BF16=50, F16=50)
    made = unevaluated(tmp_path, "Q4_0", rounds=2)
    assert asked[3:] == ["Q4_0", "BF16", "F16", "Q8_0 beside"]
    assert chosen(made, 2) == "the model's file (F16, with the adapter)"
    adapted = EngineSettings(slots=1, context=256, threads=1, lora=str(tmp_path / "lora.gguf"))
    export(made.folder, 1, "lora-gguf", [], tmp_path / "lora")
    next((tmp_path / "lora").glob("*.gguf")).rename(adapted.lora)
    sampled = read_records(made.round(2) / "rollouts.jsonl", Rollout)[:6]
    assert far_from_sampled(sampled, tmp_path / "tiny.gguf", adapted, tmp_path / "log") < 1e-3


def test_a_copy_that_speaks_of_another_model_is_not_sampled_from(tmp_path, monkeypatch):
    are_fast(monkeypatch, Q8_0=60, BF16=70, F16=83)
    monkeypatch.setattr(stand_in, "_AGREED", -1.0)
    made = unevaluated(tmp_path, rounds=2)
    assert [chosen(made, number) for number in (1, 2)] == ["its own file (F16)"] * 2, "nor what is merged in such types"
    said = [line for line in made.said if "is not sampled from: its log-probabilities are 0.0" in line]
    assert [line.split()[0] for line in said] == ["F16", "BF16"] * 2
    sampled = read_records(made.round(1) / "rollouts.jsonl", Rollout)[:6]
    assert far_from_sampled(sampled, tmp_path / "tiny.gguf", PLAIN, tmp_path / "log") < 1e-3


def test_a_copy_that_llama_cpp_does_not_survive_is_not_sampled_from(tmp_path, monkeypatch):
    """As with weights or products beyond the range of F16, which only some tokens meet."""
    are_fast(monkeypatch, Q8_0=60, BF16=70, F16=83)
    true = stand_in.scores

    async def partly(r: Round, policy: Policy, *arguments: Any, **options: Any) -> np.ndarray:
        found_T = await true(r, policy, *arguments, **options)
        overflows = gguf_file.read(policy.gguf).by_name["blk.0.ffn_up.weight"].type == Q.F16
        return np.where(overflows & (np.arange(len(found_T)) < 3), np.nan, found_T)

    monkeypatch.setattr(stand_in, "scores", partly)
    made = unevaluated(tmp_path, rounds=2)
    assert [chosen(made, number) for number in (1, 2)] == ["BF16"] * 2
    assert made.said.count("F16 is not sampled from: llama.cpp does not survive all of it") == 2


def test_a_round_that_goes_on_is_sampled_from_what_it_began_with(tmp_path, monkeypatch):
    are_fast(monkeypatch, Q8_0=60, BF16=70, F16=83)
    true, sampled = stages.search, list[str]()

    async def search(s: Search) -> Any:
        sampled.append(s.policy.gguf.name)
        if len(sampled) > 2:
            return await true(s)
        await true(replace(s, queries=s.queries[:1]))
        raise Stopped

    monkeypatch.setattr(stages, "search", search)
    for worth in (0, 1e9):
        monkeypatch.setattr(stand_in, "WORTH", worth)
        with pytest.raises(Stopped):
            unevaluated(tmp_path)
    monkeypatch.setattr(stand_in, "free_disk", lambda folder: 100_000)
    made = unevaluated(tmp_path)
    assert sampled == ["stand-in.gguf", "stand-in.gguf", "tiny.gguf"]
    said = "warning: round 1 was sampled from F16, which does not fit any more; the rest is from its own file (F16)"
    assert said in made.said


@pytest.mark.parametrize("lacks", ["memory", "disk", "tokens"])
def test_what_does_not_fit_or_pay_is_not_tried(tmp_path, monkeypatch, lacks):
    asked = are_fast(monkeypatch, Q8_0=60, BF16=70, F16=83)
    if lacks == "memory":
        monkeypatch.setattr("genius_lite.machine.engine_settings.free_memory", lambda: 100_000)
    elif lacks == "disk":
        monkeypatch.setattr(stand_in, "free_disk", lambda folder: 100_000)
    else:
        monkeypatch.setattr(stand_in, "WORTH", 1e9)
    made = unevaluated(tmp_path)
    assert asked == ([] if lacks == "tokens" else ["Q8_0"])
    assert (made.round(1) / "sampled.json").exists() == (lacks != "tokens")


def test_a_measured_sampler_measures_files_too():
    recipe = "model: {gguf: x.gguf}\nqueries: {source: q.txt}\n"
    assert parse(recipe).policy == "merge"
    assert parse(f"{recipe}sampler: auto").policy == "auto"
    assert parse(f"{recipe}sampler: auto\npolicy: adapter").policy == "adapter"
