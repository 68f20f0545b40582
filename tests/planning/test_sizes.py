from __future__ import annotations

import json
from dataclasses import replace

import pytest

from genius_lite.errors import UserError
from genius_lite.job import Job
from genius_lite.planning import disk
from genius_lite.planning.check import require_room_on
from genius_lite.planning.earlier import Earlier, look_back, probe_of
from genius_lite.planning.machine import Machine
from genius_lite.planning.probe import Probe, Response, assumed
from genius_lite.planning.remedies import remedy
from genius_lite.planning.shape import Shape
from genius_lite.planning.sizes import lacking, sizes, stages_of, with_settings
from genius_lite.prompts import StepDelimiter
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Quantize, Queries, Recipe, Sampler
from genius_lite.records import Candidate, Completion, Query, Rollout, Step
from genius_lite.rundir import write_records
from genius_lite.weights import gguf_file
from genius_lite.weights.quantize import quantized_bytes

MACHINE = Machine(10**10, 10**10, [], "cpu", 10**10, bf16=False, cores=2)
QUERIES = [Query(f"q{n}", "?", [100 + n, 1, 2]) for n in range(3)]
PROBE = Probe([[Response(100, [40, 80])]], 0.0, "probe")


@pytest.fixture
def job(tiny_llama, tmp_path) -> Job:
    recipe = Recipe(
        out=str(tmp_path / "run"),
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source="q.txt"),
        foresight=Foresight(max_tokens=200),
        learner=Learner(precision="fp32", gradient_checkpointing=False),
        quantize=Quantize(type="Q8_0"),
        sampler=Sampler(slots=64),
    )
    return Job(recipe, gguf_file.read(tiny_llama), None, QUERIES, 0, frozenset(), [], [], 0).under(recipe)


def test_disk_by_hand(tiny_llama):
    source = gguf_file.read(tiny_llama)
    shape, recipe = Shape.of(source), Recipe(out="r", model=Model(gguf="m"), queries=Queries(source="q"), rounds=3)
    by_stage = disk.written(recipe, source, shape, sampled=1000, weights=False)
    # The rounds have the types of the file.
    sixteen, adapter, made = 2 * 78_400, 4 * 16 * 2 * 928, 157_440
    assert by_stage["import"] == disk.Written(sixteen, 157_440)
    assert by_stage["training"] == disk.Written(adapter, 6 * adapter)
    # The adapter is there once more while it is scored beside its base.
    assert by_stage["merge, check"] == disk.Written(made, passing=adapter)
    needed = disk.needed(by_stage, rounds=3)
    sampled = 14 * 1000 + 5_000_000
    earlier = sixteen + 2 * (sampled + adapter + made)
    assert needed["import"] == sixteen + 157_440
    assert needed["training"] == earlier + sampled + adapter + 6 * adapter
    assert needed["export"] == earlier + sampled + adapter + made + 2 * made
    with_weights = disk.written(recipe, source, shape, sampled=1000, weights=True)
    assert with_weights["import"].kept == 2 * sixteen
    assert with_weights["merge, check"] == disk.Written(made, passing=adapter, once=made)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_base_in_the_types_of_the_rounds_is_on_disk_once(tiny_llama, rounds):
    source = gguf_file.read(tiny_llama)
    cfg = Recipe(out="r", model=Model(gguf="m"), queries=Queries(source="q"), quantize=Quantize(type="Q8_0"))
    by_stage = disk.written(cfg, source, Shape.of(source), sampled=1000, weights=False)
    made = quantized_bytes(source, "Q8_0")
    assert by_stage["merge, check"].once == by_stage["merge, check"].kept == made
    without = by_stage | {"merge, check": replace(by_stage["merge, check"], once=0)}
    more = {stage: size - disk.needed(without, rounds)[stage] for stage, size in disk.needed(by_stage, rounds).items()}
    before = made if rounds > 1 else 0  # of the fullest round, the last
    assert more == {"import": 0, "rollouts": before, "training": before, "merge, check": made, "export": made}


def test_what_fits_is_not_refused(job):
    found = sizes(job, MACHINE, PROBE)
    assert lacking(job, found, MACHINE, Earlier()) == []
    assert remedy(job, MACHINE, PROBE, Earlier()) is None
    require_room_on(job, MACHINE, PROBE, Earlier())


def test_a_refusal_names_the_stage_the_bytes_and_what_helps(job):
    peaks = sizes(job, MACHINE, PROBE).later
    # Sampling with 64 + 64 branches takes more than any other stage; without parked paths it fits.
    job = job.under(with_settings(job.recipe, {"sampler.slots": 128, "sampler.context": 512}))
    peaks = sizes(job, MACHINE, PROBE).later
    parked = peaks["rollouts"].parts["kv"] // 2
    there = peaks["rollouts"].total - parked // 2
    machine = replace(MACHINE, memory=there, learner_memory=there)
    found = remedy(job, machine, PROBE, Earlier())
    assert found
    assert found.lines == ["sampler.parked=0"]
    again = sizes(job.under(with_settings(job.recipe, found.settings)), machine, PROBE)
    assert again.fullest.total == found.memory <= there
    low = replace(machine, memory=int(0.7 * peaks["rollouts"].total))
    with pytest.raises(UserError) as refused:
        require_room_on(job, low, PROBE, Earlier())
    (line,) = str(refused.value).splitlines()
    assert line.startswith("rollouts would take about ")
    assert f"{low.memory / 1e9:.1f} GB are free" in line
    assert line.endswith("--anyway runs all the same")


def test_training_that_is_too_large_computes_activations_twice(job):
    # A thousand tokens in a pack, so that activations are most of what is not libraries.
    job = job.under(with_settings(job.recipe, {"rounds": 1, "sampler.slots": 1, "foresight.max_tokens": 500}))
    long = Probe([[Response(480, [120, 240, 360])]], 0.0, "probe")
    machine = replace(MACHINE, memory=sizes(job, MACHINE, long).first["training"].total - 1)
    # Other stages are done, so that nothing else can lack.
    others = Earlier(done=frozenset(stage for stage in stages_of(job) if stage[0] != "training"))
    assert [lack.stage for lack in lacking(job, sizes(job, machine, long), machine, others)] == ["training"]
    found = remedy(job, machine, long, others)
    assert found
    assert not found.lacks
    changed = sizes(job.under(with_settings(job.recipe, found.settings)), machine, long).first["training"]
    assert changed.total <= machine.memory


def test_only_what_is_still_to_come_counts(job):
    machine = replace(MACHINE, memory=1000)
    every = lacking(job, sizes(job, machine, PROBE), machine, Earlier())
    assert {lack.stage for lack in every} == {"import", "rollouts", "training", "merge, check", "export"}
    done = Earlier(done=frozenset(stage for stage in stages_of(job) if stage[0] != "export"))
    assert [lack.stage for lack in lacking(job, sizes(job, machine, PROBE), machine, done)] == ["export"]


def test_a_full_disk(job):
    machine = replace(MACHINE, disk=1000)
    with pytest.raises(UserError, match=r"GB of disk in .*, 0.0 GB are free: make room or move `out`"):
        require_room_on(job, machine, PROBE, Earlier())
    # What the folder holds already need not be free.
    held = max(sizes(job, machine, PROBE).disk.values())
    require_room_on(job, machine, PROBE, Earlier(bytes=held))


def test_a_gpu_that_is_too_small(job):
    machine = replace(MACHINE, device="cuda", learner_memory=10)
    lacks = lacking(job, sizes(job, machine, PROBE), machine, Earlier())
    assert (lacks[0].stage, lacks[0].what) == ("training", "GPU memory")


def test_stages_in_their_order(job):
    assert stages_of(job) == [
        ("import", 0), ("rollouts", 1), ("training", 1), ("merge, check", 1),
        ("rollouts", 2), ("training", 2), ("merge, check", 2), ("export", 2),
    ]  # fmt: skip
    watched = replace(job, watched=QUERIES[:1])
    assert ("base model", 0) in stages_of(watched)
    assert ("evaluation", 2) in stages_of(watched)
    unwatched = watched.under(job.recipe.model_copy(update={"evaluate": Evaluate(queries=0)}))
    assert ("evaluation", 2) not in stages_of(unwatched)


def test_a_run_folder_says_what_is_done(job, tmp_path):
    assert look_back(tmp_path / "none", 2) == Earlier()
    run = tmp_path / "run"
    (run / "round-1" / "adapter").mkdir(parents=True)
    (run / "hf-checkpoint").mkdir()
    (run / "recipe.json").write_text("{}")
    (run / "timings.jsonl").write_text(json.dumps({"stage": "import", "seconds": 7.5, "amount": 1}) + "\n")
    rows = [{"stage": "rollouts", "seconds": s, "amount": 1} for s in (3.0, 4.0)]  # it was interrupted once
    (run / "round-1" / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = Completion([5, 6, 7], [-0.1] * 3, "step")
    candidates = [Candidate(0, step, Completion([8], [-0.2], "end"), -0.2, -0.2)] * 2
    write_records(run / "round-1" / "rollouts.jsonl", [Rollout(QUERIES[0], [Step(0, candidates, [0], 2)])])
    (run / "round-1" / "pairs.jsonl").write_text("")
    (run / "round-2").mkdir()
    (run / "round-2" / "rollouts.jsonl").write_text("{}\n{}\n")
    found = look_back(run, 2)
    assert found.done == {("import", 0), ("rollouts", 1), ("training", 1)}
    assert (found.mean_seconds("import"), found.mean_seconds("rollouts")) == (7.5, 7.0)
    assert found.mean_seconds("training") is None
    assert (found.tokens, found.searched) == ([8], {2: 2})
    assert found.bytes == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())
    seen = probe_of(run, StepDelimiter([b"a"] * 10), candidates=4)
    assert seen
    # Two of four candidates repeated another one, of which each had 1.5 to repeat.
    assert (seen.mean_length, seen.repeats, seen.later, seen.source) == (4, pytest.approx(1 / 3), 0, "round 1")


def test_slots_that_nobody_measured(job):
    job = job.under(with_settings(job.recipe, {"sampler.slots": "auto"}))
    assert sizes(job, MACHINE, assumed(job.recipe.foresight), slots=1).engine.slots == 8
    assert sizes(job, MACHINE, assumed(job.recipe.foresight), slots=32).engine.slots == 32
