"""The benchmarks that the README names, on tiny models: they run to their end and say what they are read for."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from genius_lite import run as run_recipe
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Queries, Recipe
from tests.benchmarks import large_set, learner, merge, plan, rollouts
from tests.benchmarks.machine import in_words, measured_on
from tests.benchmarks.peers import Missing
from tests.benchmarks.table import markdown
from tests.conftest import FORKED_HELPERS
from tests.support import forked, warm
from tests.support.cli import RECIPE
from tests.support.models import ANY_PAIRS

pytestmark = FORKED_HELPERS


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory) -> Path:
    """A run of one round on four questions, which the benchmarks take."""
    folder = tmp_path_factory.mktemp("benchmarks")
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(4)))
    run_recipe(
        Recipe(
            out=str(folder / "run"),
            model=Model(gguf=str(tiny_llama)),
            queries=Queries(source=str(questions)),
            rounds=1,
            foresight=Foresight(beams=2, candidates=3, steps=2, max_tokens=12),
            pairs=ANY_PAIRS,
            learner=Learner(batch_pairs=4, precision="fp32"),
            evaluate=Evaluate(queries=0),
        )
    )
    return folder / "run"


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> str:
    """What a benchmark runs before, of whose own processes only the time matters: their modules are run by forks."""
    python = tmp_path_factory.mktemp("forks") / "python"
    python.write_text(f"""#!/bin/sh
test "$1" = -m && shift && exec {shlex.join(forked.command(warm.server()))} "$@"
exec {shlex.quote(sys.executable)} "$@"
""")
    python.chmod(0o755)
    return f"import sys; sys.executable = {str(python)!r}"


def benchmark(name: str, *arguments: object, before: str = "") -> str:
    """Run one as the README says, and return what it printed, which says on what machine."""
    asked = [*map(str, arguments)]
    done = warm.run(asked, Path.cwd(), {**os.environ}, module=f"tests.benchmarks.{name}", before=before)
    assert done.returncode == 0, done.stderr
    assert in_words(measured_on()) in done.stdout
    return done.stdout


def last(said: str) -> dict[str, Any]:
    """What the line of JSON says, at the end."""
    found = json.loads(said.splitlines()[-1])
    assert measured_on().items() <= found["machine"].items()
    return found


def table(said: str) -> list[dict[str, str]]:
    """The rows of the only table, by its columns."""
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in said.splitlines() if line[:1] == "|")
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_rollouts_beside_another_way_to_sample(tiny_llama, finished):
    small = ["--limit", 2, "--slots", 4, "--context", 256, "--steps", 2, "--max-tokens", 8]
    model = ["--model", tiny_llama, "--queries", finished.parent / "questions.jsonl"]
    printed = benchmark("rollouts", *model, *small, "--draws", "host,device", "--against", "high-level")
    host, device = table(printed)
    said = last(printed)
    speeds = {name: figures["tokens_per_s"] for name, figures in said["median"].items()}
    for what in ("search", "plain"):
        there = speeds[f"{what}, drawn on the device"]
        assert said["ratios"][f"{what}, device / host"] == pytest.approx(there / speeds[what], abs=2e-3)
        assert float(device[f"{what}, device / host"]) == pytest.approx(there / speeds[what], abs=2e-2)
    assert (host["drawn on"], device["drawn on"]) == ("host", "device")
    assert float(device["search / high-level"]) == pytest.approx(
        said["ratios"]["search, drawn on the device / high-level"], abs=1e-2
    )
    assert host["slots, KV, threads"].startswith("4, split, ")
    assert min(speeds.values()) > 0


def test_a_device_that_cannot_draw_is_not_measured_as_if_it_could():
    rollouts.see_that_it_draws("llama_context: ...\n")
    with pytest.raises(Missing, match=r"^tokens are drawn on the host: this device lacks"):
        rollouts.see_that_it_draws("llama_context: ...\ntokens are drawn on the host: this device lacks ggml's ...\n")


def test_rows_of_several_rounds_have_each_ratio(tmp_path):
    """As RESULTS.md has them."""
    counted = {"sampled_tokens": 200, "shared_tokens": 24, "share_sampling": 0.07}
    rounds = [{"tokens_per_s": speed, **counted} for speed in (386, 440, 380)]
    results = {"search": rounds, "plain": [{"tokens_per_s": 411}] * 3, "bench": [{"tokens_per_s": 500}] * 3}
    asked = argparse.Namespace(
        draws=["host"], model=Path("SmolLM2.gguf"), slots=32, kv_unified=True, threads=2, repeats=3
    )
    (row,) = rollouts.rows(asked, 32, results)
    assert (row["search tokens/s"], row["search / bench"]) == ("386", "0.77 (0.77, 0.88, 0.76)")
    assert (row["plain / bench"], row["shared"], row["drawing"]) == ("0.82 (0.82, 0.82, 0.82)", "12%", "7%")
    sizes = {f"{n} queries": [{"seconds_per_query": 3.54 * n, "peak_mb": 1014.2}] for n in (1, 2)}
    assert markdown(rollouts.rows_of_sizes(sizes)).splitlines() == [
        "",
        "| queries | seconds a query | peak memory of the worker |",
        "|---|---|---|",
        "| 1 | 3.540 | 1,014 MB |",
        "| 2 | 7.080 (2.00) | 1,014 MB |",
    ]


def test_builds_of_llama_cpp_side_by_side(tiny_llama, finished):
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    small = ["--limit", 2, "--slots", 4, "--context", 256, "--steps", 2, "--max-tokens", 8]
    model = ["--model", tiny_llama, "--queries", finished.parent / "questions.jsonl"]
    said = json.loads(benchmark("builds", f"one={folder}", f"two={folder}", *model, *small).splitlines()[-1])
    assert said["machine"] == {"one": measured_on(), "two": measured_on()}
    assert min(said["ratios"][f"{what}, one / two"] for what in ("search", "plain")) > 0


def test_the_learner_by_itself(finished):
    files = ["--hf-checkpoint", finished / "hf-checkpoint", "--pairs", finished / "round-1" / "pairs.jsonl"]
    without = "trl,trl checkpointing,ours nf4,losses"  # TRL is not among the tests' requirements
    said = last(printed := benchmark("learner", *files, "--limit", 4, "--without", without))
    assert min(said["median"]["ours"][name] for name in ("pairs_per_s", "peak_mb")) > 0
    (row,) = table(printed)
    assert (row["model"], row["pairs"], row[""]) == ("tiny", "4", "ours fp32")
    assert float(row["pairs/s"]) == pytest.approx(said["median"]["ours"]["pairs_per_s"], rel=0.01)


def test_the_learners_table_has_what_ours_is_in_terms_of_trl():
    ours = {"pairs_per_s": 1.21, "peak_mb": 2629.0, "weights_mb": 538.2, "gflops": 149.3, "matmul_gflops": 1530.1}
    kept, twice = ({"pairs_per_s": s, "peak_mb": mb} for s, mb in ((0.4276, 5278.0), (0.3324, 3647.0)))
    asked, median = argparse.Namespace(limit=32, dtype="fp32"), {"ours": ours, "trl": kept, "trl checkpointing": twice}
    assert markdown(learner.rows(asked, "SmolLM2-135M", median)).splitlines()[1:] == [
        "| model | pairs |  | pairs/s | peak MB | weights MB | / TRL, pairs/s | / TRL, memory "
        "| of the machine's fp32 products |",
        "|---|---|---|---|---|---|---|---|---|",
        "| SmolLM2-135M | 32 | ours fp32 | 1.21 | 2,629 | 538 | 2.83 (3.64) | 0.498 (0.721) | 149 of 1,530 GFLOPS |",
        "| SmolLM2-135M | 32 | TRL | 0.428 (0.332) | 5,278 (3,647) |  |  |  |  |",
    ]


def test_many_questions_train_in_the_memory_of_few():
    few, many = last(benchmark("training_memory", "--questions", 10, 80))["questions"].values()
    assert few["updates"] == 1 and many["updates"] == 10
    assert many["peak_mb"] < 1.05 * few["peak_mb"]


def test_what_files_keep(finished):
    kinds = ["--sizes", "3e-4", "--sources", "F16,Q8_0", "--targets", "F16,Q8_0", "--texts", 2]
    rows = [line.split("|") for line in benchmark("kept", finished, *kinds).splitlines() if line.startswith("| 0.0003")]
    assert [row[2].strip() for row in rows] == ["F16", "Q8_0"]
    for row in rows:
        for cell in row[3:-1]:
            assert 0.9 < float(cell.split(";")[0]) < 1.1


def test_checkers_beside_those_of_lm_evaluation_harness(tiny_llama, tmp_path):
    pytest.importorskip("lm_eval")
    for name, answer in (("gsm8k", "1,072"), ("arc", "B")):
        rows = [{"prompt": f"What is {n}?", "answer": answer} for n in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = [
        ("gsm8k", "1072", "It is 1072.\n#### 1,072"),
        ("gsm8k", "1072", "The answer is 1072, and not 5."),
        ("gsm8k", "5", "The answer is 1072, and not 5."),
        ("arc_challenge_chat", "B", "Thus. The best answer is B."),
        ("arc_challenge_chat", "B", "The best answer is (C), not B"),
    ]
    folder = tmp_path / "responses"
    folder.mkdir()
    rows = [{"model": "written", "task": task, "answer": answer, "text": text} for task, answer, text in written]
    (folder / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--gsm8k", tmp_path / "gsm8k.jsonl", "--arc", tmp_path / "arc.jsonl", "--models", tiny_llama]
    said = benchmark("agreement", folder, *files).splitlines()
    counted = {tuple(row.split(" | ")[:2]): row.split(" | ")[2:7] for row in said if row.startswith("| ")}
    assert counted["| written", "gsm8k, strict-match"] == ["3", "1", "1", "0", "1"]
    assert counted["| written", "gsm8k, flexible-extract"] == ["3", "1", "1", "1", "0"]
    assert counted["| written", "arc_challenge_chat, remove_whitespace"] == ["2", "1", "0", "0", "1"]
    assert counted[f"| {tiny_llama.stem}", "arc_challenge_chat, remove_whitespace"][0] == "2"
    assert "3 differences" in "\n".join(said)


def test_a_run_of_many_questions(forks, tmp_path):
    small = ["--queries", 6, "--characters", 40, "--step-tokens", 6, "--future-tokens", 9, "--folder", tmp_path]
    printed = benchmark("large_set", *small, before=forks)
    (phases,) = last(printed)["questions"].values()
    assert [*phases] == [*large_set.PHASES]
    assert all(row["seconds"] > 0 and row["mb"] > 10 for row in phases.values())
    assert [*tmp_path.iterdir()] == []


def test_a_merge_in_parts_and_plainly(forks, tmp_path):
    printed = benchmark("merge", "--folder", tmp_path, "--layers", 2, "--divide", 64, "--repeat", 1, before=forks)
    said = last(printed)
    weights = 2 * sum(rows * columns for rows, columns in merge.shapes(2, 64).values())
    assert weights < 1e9 * said["model_GB"] < weights + 4096  # bytes of F16, and a header
    assert said["largest_tensor_MB"] == pytest.approx(2 * 2004 * 64 / 1e6)
    assert said["time_ratio"] == pytest.approx(said["seconds"]["ours"] / said["seconds"]["plain"])
    assert [*tmp_path.iterdir()] == []


def test_a_cluster_of_which_a_node_joins_late(tiny_llama, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = ["--workers", 8, "--queries", 80, "--seconds", 0.05, "--searched", 6, "--nodes", "one node of a core"]
    said = last(printed := benchmark("cluster", "--model", tiny_llama, *small))
    assert printed.count("sampling on ") == 3  # the one, and beside another one of it the one that joins
    assert said["one node of a core s"] > 0
    assert 0 < said["joined"]["samples after s"] < said["joined"]["round s"]
    driver = said["driver"]
    assert (driver["workers"], driver["queries"]) == (8, 80)
    assert driver["wall s"] > 0.8 * driver["ideal s"] == 0.4


def test_a_plan_beside_its_run(tiny_llama, forks, tmp_path):
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("".join(f"What is {n} + {n}?\n" for n in range(6)))
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    said = last(benchmark("plan", recipe, "--set", "rounds=1", "--set", "evaluate.queries=2", before=forks))
    stages = [row["stage"] for row in said["stages"]]
    assert {*stages} == {*plan.STAGES.values(), "base model"} and stages[:2] == ["import", "base model"]
    assert all(0.3 < row["memory"] < 3 and row["planned_s"] >= 0 for row in said["stages"])
    whole = said["whole"]
    assert 0 < whole["measured_s"] < whole["wall_s"]
    assert whole["time"] == pytest.approx(whole["planned_s"] / whole["measured_s"], abs=0.1)


def test_a_long_rollout_log():
    printed = benchmark("rollout_log", "--queries", 300)
    assert "300 rollouts, 0.01 GB\n" in printed
    assert re.search(r"^opened in \d+\.\d\d s, 300 queries", printed, re.MULTILINE)  # each once
    assert last(printed)["pass_bytes"] < last(printed)["bytes"]


def test_where_the_time_of_a_run_goes(finished):
    lines = (printed := benchmark("breakdown", finished)).splitlines()
    said = last(printed)
    assert {"import", "sampling", "pairs", "training", "files: file", "files: check"} <= said["seconds"].keys()
    assert 0 < said["overhead_s"] < sum(said["seconds"].values()) <= said["whole_s"]
    shares = [float(line.split("|")[3].strip(" %")) for line in lines if line.endswith("% |")]
    assert sum(shares[:-1]) == pytest.approx(100, abs=1) and shares[-1] == 100
