"""Real plans of a tiny model: what they say, and what a run then takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import gguf
import msgspec
import pytest

from genius_lite import load
from genius_lite.pipeline.job import prepare
from genius_lite.plan import plan as plan_module
from genius_lite.plan.history import Rates
from genius_lite.plan.plan import forecast
from genius_lite.plan.shape import Machine
from genius_lite.progress import SILENT
from tests.conftest import FORKED_HELPERS
from tests.support import cli
from tests.support.models import tiny_gguf

pytestmark = FORKED_HELPERS

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


def genius(*arguments: object, cwd: Path) -> CompletedProcess[str]:
    """A command, with a cache of its own, so that nothing is remembered from elsewhere."""
    return cli.genius(*arguments, cwd=cwd, env={**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "COLUMNS": "80"})


def planned(*arguments: object, cwd: Path) -> dict:
    result = genius("plan", "r.yaml", "--json", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def rollouts(out: Path) -> dict[str, list[list[list[int]]]]:
    """The tokens of each query's candidates, step by step, in whatever order the searches ended."""
    lines = [json.loads(line) for line in (out / "round-1" / "rollouts.jsonl").read_text().splitlines()]
    return {
        rollout["query"]["id"]: [[c["step"]["tokens"] for c in step["candidates"]] for step in rollout["steps"]]
        for rollout in lines
    }


def test_a_plan_says_what_the_run_then_takes_and_changes_nothing_in_it(project):
    plan = planned(cwd=project)
    assert (plan["queries"], plan["rounds"], plan["slots"], plan["fits"]) == (4, 1, 8, True)
    stages = {(s["stage"], s["round"]): s for s in plan["stages"]}
    assert list(stages) == [
        ("import", 0), ("base model", 0), ("rollouts", 1), ("train", 1), ("merge", 1), ("evaluate", 1),
        ("export", 1),
    ]  # fmt: skip
    assert [stage for stage, s in stages.items() if s["done"]] == [("import", 0)]
    assert all(s["seconds"] > 0 and sum(s["peak"]["parts"].values()) > 0 for s in plan["stages"])
    assert plan["seconds"] == pytest.approx(sum(s["seconds"] for s in plan["stages"] if not s["done"]))
    assert plan["low"] < plan["seconds"] < plan["high"]
    assert plan["responses_from"] == "rehearsal"
    assert (plan["ends"]["limit"], plan["ends"]["responses"] > 0, plan["ends"]["thoughts"]) == (24, True, 0)
    # Nothing outside of the run's folder, and in it no more than the run needs, and what the plan came to.
    out = project / "runs" / "r"
    assert sorted(p.name for p in project.iterdir() if p.name != "cache") == ["q.txt", "r.yaml", "runs", "tiny.gguf"]
    assert sorted(p.name for p in out.iterdir()) == [
        "hf-checkpoint",
        "lock",
        "recipe.json",
        "rehearsal.json",
        "timings.jsonl",
    ]
    hf_checkpoint = (out / "hf-checkpoint" / "model.safetensors").stat().st_mtime_ns
    rates = (out / "rehearsal.json").read_bytes()
    known = msgspec.json.decode(rates, type=Rates)
    # Held-out queries are answered at temperature 1, which is not the search's.
    assert known.answers.source == "rehearsal" and known.answers != known.lengths
    assert known.base.scored > 0
    if not known.disturbed:
        planned(cwd=project)
        assert (out / "rehearsal.json").read_bytes() == rates, "what is known is not rehearsed again"

    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert (out / "hf-checkpoint" / "model.safetensors").stat().st_mtime_ns == hf_checkpoint
    report = json.loads((out / "summary.json").read_text())["rounds"][0]
    assert 0.4 < stages["rollouts", 1]["tokens"] / report["rollouts"]["sampled_tokens"] < 2.5
    noted = [json.loads(line) for line in (out / "round-1" / "timings.jsonl").read_text().splitlines()]
    trained = next(row for row in noted if row["stage"] == "train")
    # How much of the libraries' files is resident goes by the system: 0.24 GB less where it reclaims what rests.
    expected, peak = sum(stages["train", 1]["peak"]["parts"].values()), trained["peak_bytes"]
    assert 0.5 * peak < expected < max(1.5 * peak, peak + 350e6)
    sampled = next(row for row in noted if row["stage"] == "rollouts")
    both = sampled["peak_bytes"] + sampled["sampler"]["peak"]
    assert 0.5 < sum(stages["rollouts", 1]["peak"]["parts"].values()) / both < 1.5
    held = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert held < plan["disk"] + 1_000_000

    without = genius("run", "r.yaml", "--out", "runs/without", cwd=project)
    assert without.returncode == 0, without.stderr
    assert rollouts(project / "runs" / "without") == rollouts(out)

    after = planned(cwd=project)
    assert all(stage["done"] for stage in after["stages"])
    assert (after["seconds"], after["tokens"], after["responses_from"]) == (0, 0, "round 1")
    known = {s["stage"]: s["seconds"] for s in after["stages"]}
    assert known["train"] == pytest.approx(trained["seconds"])
    more = planned("--set", "seed=1", cwd=project)
    assert "holds a run of another recipe" in more["notes"][0]
    assert more["seconds"] is None


def test_what_no_setting_makes_fit_is_said_without_measuring(project, monkeypatch):
    """A model of which the import alone takes more than there is was loaded six times first."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(plan_module, "engine_settings", lambda *_: pytest.fail("the machine is measured"))
    monkeypatch.setattr(Machine, "here", lambda folder: Machine(10**6, 10**12, [], "cpu", 10**6, False, 2))
    found = plan_module.plan(prepare(load("r.yaml", ["sampler=auto"])), SILENT)
    assert not found.fits


def test_a_plan_says_what_validate_says(project):
    """Which rows are set aside, and that a quantized model is quantized a second time."""
    (project / "q.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": 3}\n')
    tiny_gguf(project / "q4.gguf", "llama", kind=gguf.GGMLQuantizationType.Q4_0)
    more = ("queries.source=q.jsonl", "model.gguf=q4.gguf", "quantize.type=Q5_K_M")
    told = planned("--no-rehearsal", *(word for key in more for word in ("--set", key)), cwd=project)["notes"]
    assert [note for note in told if "1 row is set aside" in note]
    assert [note for note in told if "quantized a second time" in note]


def test_a_plan_and_a_run_say_what_share_of_responses_and_thoughts_came_to_its_end(project):
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n"
    (project / "tiny.gguf").unlink()
    tiny_gguf(project / "tiny.gguf", "llama", template=template)  # a random model, whose thoughts have no end
    more = ("--set", "foresight.thought_tokens=8")
    ends = planned(*more, cwd=project)["ends"]
    assert (ends["limit"], ends["thoughts"], ends["thoughts_ended"]) == (32, ends["responses"], 0)
    share = f"{ends['ended'] / ends['responses']:.0%} of {ends['responses']} responses ended within 32 tokens"
    line = f"{share}, and so did 0% of {ends['thoughts']} thoughts"
    table = " ".join(genius("plan", "r.yaml", "--no-rehearsal", *more, cwd=project).stdout.split())
    assert f"from the rehearsal: {line}. " in table
    checked = genius("validate", "r.yaml", *more, cwd=project).stdout
    assert f"write foresight.thought_tokens: 40, or switch thoughts off in queries.template ({line})" in checked


def test_a_rehearsal_elsewhere_leaves_nothing(project):
    plan = planned("--temporary", cwd=project)
    assert plan["seconds"] > 0
    assert not (project / "runs").exists()


def test_what_was_rehearsed_is_forecast_but_not_beside_other_programs(project, monkeypatch):
    monkeypatch.chdir(project)
    job = prepare(load(Path("r.yaml")))
    assert forecast(job) == {}
    planned(cwd=project)
    file = project / "runs" / "r" / "rehearsal.json"
    rates = msgspec.json.decode(file.read_bytes(), type=Rates)
    for others, known in ((0.0, ["pairs", "rollouts", "train", "merge", "evaluate"]), (0.5, [])):
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(rates, others=others)))
        assert list(forecast(job)) == known
    table = " ".join(genius("plan", "r.yaml", "--no-rehearsal", cwd=project).stdout.split())
    assert "Other programs took 50% of the processor during the rehearsal." in table


def test_an_interrupted_rehearsal_is_begun_again(project):
    out = project / "runs" / "r"
    planned(cwd=project)
    (out / "rehearsal.json").unlink()
    (out / "rehearsal" / "round-1").mkdir(parents=True)
    (out / "rehearsal" / "round-1" / "rollouts.jsonl").write_text('{"quer')
    assert planned(cwd=project)["seconds"] > 0
    assert not (out / "rehearsal").exists()


def test_a_changed_recipe_is_planned_and_run_in_the_same_folder(project):
    planned(cwd=project)
    result = genius("run", "r.yaml", "--set", "foresight.max_tokens=20", cwd=project)
    assert result.returncode == 0, result.stderr


def test_without_a_rehearsal_nothing_is_run_and_no_time_is_made_up(project):
    result = genius("plan", "r.yaml", "--no-rehearsal", cwd=project)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    words = " ".join(result.stdout.split())
    for said in ("import", "rollouts", "train", "merge", "evaluate", "export", "It fits:", "assumed"):
        assert said in words
    assert "Nothing tells the time yet" in words
    assert not (project / "runs").exists()
    assert not (project / "cache" / "genius-lite").exists()


def test_what_does_not_fit_is_said_by_plan_and_refused_by_run(project):
    # 128 + 128 branches of 60,000 tokens, 2 layers, 128 bytes: 3.9 TB.
    (project / "r.yaml").write_text(RECIPE.replace("sampler: {slots: 8}", "sampler: {slots: 128, context: 60000000}"))
    plan = planned("--no-rehearsal", cwd=project)
    assert not plan["fits"]
    assert plan["lacking"][0]["what"] == "memory"
    assert plan["lacking"][0]["wanted"] > 256 * 60_000_000 * 2 * 128
    assert plan["advice"]
    table = genius("plan", "r.yaml", "--no-rehearsal", cwd=project).stdout
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
    context = planned("--no-rehearsal", cwd=project)["free"]["memory"] // (64 * 2 * 128)  # 64 branches fill the memory
    slots = f"sampler: {{slots: 128, context: {context}}}"
    (project / "r.yaml").write_text(RECIPE.replace("sampler: {slots: 8}", slots))
    plan = planned("--no-rehearsal", cwd=project)
    assert not plan["fits"]
    assert plan["change"]["lacks"] == []
    changes = [f"--set={key}={json.dumps(value)}" for key, value in plan["change"]["settings"].items()]
    assert planned("--no-rehearsal", *changes, cwd=project)["fits"]
