"""Real plans of a tiny model: what they say, and what a run then takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genius_lite import load
from genius_lite.pipeline.job import prepare
from genius_lite.planning.forecast import forecast
from genius_lite.planning.table import duration

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 1
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-2, batch_pairs: 2, parity_limit: 5, holdout: 0.25}
sampler: {slots: 8}
"""


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\nfour\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def genius(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """A command, with a cache of its own, so that nothing is remembered from elsewhere."""
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "COLUMNS": "80"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def planned(*arguments: object, cwd: Path) -> dict:
    result = genius("plan", "r.yaml", "--json", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_plan_says_what_the_run_then_takes(project):
    plan = planned(cwd=project)
    assert (plan["queries"], plan["rounds"], plan["slots"], plan["fits"]) == (4, 1, 8, True)
    assert plan["how"] == {
        "decoding": "measured", "merging": "measured", "lengths": "measured", "learning": "measured",
        "importing": "estimated",
    }  # fmt: skip
    stages = {(s["stage"], s["round"]): s for s in plan["stages"]}
    assert list(stages) == [
        ("import", 0), ("base model", 0), ("rollouts", 1), ("training", 1), ("merge, check", 1), ("evaluation", 1),
        ("export", 1),
    ]  # fmt: skip
    for stage in plan["stages"]:
        assert stage["memory_total"] == sum(stage["memory"].values()) > 0
        assert 0 <= stage["low"] <= stage["seconds"] <= stage["high"]
    assert plan["memory"] == max(s["memory_total"] for s in plan["stages"])
    assert plan["seconds"] == pytest.approx(sum(s["seconds"] for s in plan["stages"]))
    again = planned(cwd=project)
    assert set(again["how"].values()) == {"remembered", "estimated"}

    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    out = project / "runs" / "r"
    report = json.loads((out / "summary.json").read_text())["rounds"][0]
    shown = {"rollouts": "rollouts", "training": "train", "merge, check": "merge", "evaluation": "evaluate"}
    expected = {shown[s["stage"]]: s["seconds"] for s in again["stages"] if s["stage"] in shown}
    board = json.loads((out / "progress.json").read_text())
    assert board["forecast"] == pytest.approx({"pairs": 0.0, **expected})
    assert 0.4 < stages["rollouts", 1]["tokens"] / report["rollouts"]["sampled_tokens"] < 2.5
    noted = [json.loads(line) for line in (out / "round-1" / "timings.jsonl").read_text().splitlines()]
    trained = next(row for row in noted if row["stage"] == "train")
    assert 0.5 < stages["training", 1]["memory_total"] / trained["peak_bytes"] < 1.5
    sampled = next(row for row in noted if row["stage"] == "rollouts")
    both = sampled["peak_bytes"] + sampled["sampler_peak_bytes"]
    assert 0.5 < stages["rollouts", 1]["memory_total"] / both < 1.5
    held = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert held < plan["disk"] + 1_000_000

    after = planned(cwd=project)
    assert all(stage["done"] for stage in after["stages"])
    assert (after["seconds"], after["tokens"], after["responses_from"]) == (0, 0, "round 1")
    known = {s["stage"]: s["seconds"] for s in after["stages"]}
    assert known["training"] == pytest.approx(trained["seconds"])
    # A second round is planned from the first.
    more = planned("--set", "rounds=2", "--set", "seed=1", cwd=project)
    assert "holds a run of another recipe" in more["notes"][0]


def test_what_was_never_measured_is_not_forecast(project, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    monkeypatch.chdir(project)
    assert forecast(prepare(load(Path("r.yaml")))) == {}


def test_without_measuring_nothing_is_run_and_everything_is_said(project):
    result = genius("plan", "r.yaml", "--no-measure", cwd=project)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    words = " ".join(result.stdout.split())
    for said in ("import", "rollouts", "training", "merge, check", "evaluation", "export", "It fits:", "assumed"):
        assert said in words
    assert "estimated: decoding" in words
    assert not (project / "runs").exists()
    assert not (project / "cache" / "genius-lite").exists()


def test_what_does_not_fit_is_said_by_plan_and_refused_by_run(project):
    # 128 + 128 branches of 60,000 tokens, 2 layers, 128 bytes: 3.9 TB.
    (project / "r.yaml").write_text(RECIPE.replace("sampler: {slots: 8}", "sampler: {slots: 128, context: 60000000}"))
    plan = planned("--no-measure", cwd=project)
    assert not plan["fits"]
    assert plan["lacking"][0]["what"] == "memory"
    assert plan["lacking"][0]["wanted"] > 256 * 60_000_000 * 2 * 128
    assert plan["advice"]
    table = genius("plan", "r.yaml", "--no-measure", cwd=project).stdout
    assert "It does not fit:" in table
    assert "What helps:" in table
    before = sorted(str(path) for path in project.rglob("*"))
    refused = genius("run", "r.yaml", cwd=project)
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "TB" in line or "GB of memory" in line
    assert "--force runs all the same" in line
    assert sorted(str(path) for path in project.rglob("*")) == before


def test_a_change_that_would_make_it_fit_is_one_that_does(project):
    (project / "r.yaml").write_text(RECIPE.replace("sampler: {slots: 8}", "sampler: {slots: 128, context: 4000000}"))
    plan = planned("--no-measure", cwd=project)
    assert not plan["fits"]
    changes = [argument for setting in plan["change"]["settings"] for argument in ("--set", setting)]
    assert planned("--no-measure", *changes, cwd=project)["fits"] == plan["change"]["fits"]


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0s"), (59.4, "59s"), (330, "5m30s"), (11_130, "3h05m")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown
