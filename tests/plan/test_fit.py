from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.pipeline.job import Job
from genius_lite.plan.fit import disk_bytes, require_room_on, shortfalls, sizes, stages_of, suggest, with_settings
from genius_lite.plan.history import DoneStages
from genius_lite.plan.lengths import Lengths, ResponseLength, assumed
from genius_lite.plan.shape import Machine, Shape
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Quantize, Queries, Recipe, Sampler
from genius_lite.records import Query
from genius_lite.weights import gguf_file
from genius_lite.weights.quantize import quantized_bytes

MACHINE = Machine(10**10, 10**10, [], "cpu", 10**10, bf16=False, cores=2)
QUERIES = [Query(f"q{n}", "?", [100 + n, 1, 2]) for n in range(3)]
LENGTHS = Lengths([[ResponseLength(100, [40, 80])]], 0.0, "rehearsal")


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


def test_disk_by_hand(job):
    shape = Shape.of(job.source)
    job = job.under(with_settings(job.recipe, {"rounds": 3, "quantize.type": "source"}))
    # The rounds have the types of the file.
    sixteen, adapter, made = 2 * 78_400, 4 * 16 * 2 * 928, 157_440
    sampled = 14 * 1000 + 5_000_000
    before = sixteen + 2 * (sampled + adapter + made)
    assert disk_bytes(job, shape, 1000) == {
        "import": sixteen + 157_440,
        "rollouts": before + sampled,
        "train": before + sampled + adapter + 6 * adapter,
        # The adapter is there once more while it is scored beside its base.
        "merge": before + sampled + adapter + made + adapter,
        "export": before + sampled + adapter + made + 2 * made,
    }
    with_weights = disk_bytes(replace(job, weights=Path("full")), shape, 1000)
    assert with_weights["import"] == 3 * sixteen
    # The other copy of the weights, and the base model in the types of the rounds.
    assert with_weights["export"] == disk_bytes(job, shape, 1000)["export"] + sixteen + made


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_base_in_the_types_of_the_rounds_is_on_disk_once(job, rounds):
    shape, made = Shape.of(job.source), quantized_bytes(job.source, "Q8_0")
    job = job.under(with_settings(job.recipe, {"rounds": rounds}))
    found = disk_bytes(job, shape, 1000)
    adapter, sampled = 4 * 16 * 2 * 928, 14 * 1000 + 5_000_000
    held = 2 * 78_400 + (rounds - 1) * (sampled + adapter + made) + (made if rounds > 1 else 0)
    assert found["train"] == held + sampled + 7 * adapter
    assert found["export"] == held + sampled + adapter + 3 * made + (made if rounds == 1 else 0)


def test_what_fits_is_not_refused(job):
    found = sizes(job, MACHINE, LENGTHS)
    assert shortfalls(job, found, MACHINE, DoneStages()) == []
    assert suggest(job, MACHINE, LENGTHS, DoneStages()) is None
    require_room_on(job, MACHINE, LENGTHS, DoneStages())


def test_a_refusal_names_the_stage_the_bytes_and_what_helps(job):
    peaks = sizes(job, MACHINE, LENGTHS).later
    # Sampling with 64 + 64 branches takes more than any other stage; without parked paths it fits.
    job = job.under(with_settings(job.recipe, {"sampler.slots": 128, "sampler.context": 512}))
    peaks = sizes(job, MACHINE, LENGTHS).later
    parked = peaks["rollouts"].parts["kv"] // 2
    there = peaks["rollouts"].total - parked // 2
    machine = replace(MACHINE, memory=there, learner_memory=there)
    found = suggest(job, machine, LENGTHS, DoneStages())
    assert found
    assert found.options == "--set sampler.parked=0"
    again = sizes(job.under(with_settings(job.recipe, found.settings)), machine, LENGTHS)
    assert again.highest.total == found.memory <= there
    low = replace(machine, memory=int(0.7 * peaks["rollouts"].total))
    with pytest.raises(UserError) as refused:
        require_room_on(job, low, LENGTHS, DoneStages())
    (line,) = str(refused.value).splitlines()
    assert line.startswith("rollouts would take about ")
    assert f"{low.memory / 1e9:.1f} GB are free" in line
    assert line.endswith("--force runs all the same")


def test_training_that_is_too_large_computes_activations_twice(job):
    # A thousand tokens in a pack, so that activations are most of what is not libraries.
    job = job.under(with_settings(job.recipe, {"rounds": 1, "sampler.slots": 1, "foresight.max_tokens": 500}))
    long = Lengths([[ResponseLength(480, [120, 240, 360])]], 0.0, "rehearsal")
    machine = replace(MACHINE, memory=sizes(job, MACHINE, long).first["train"].total - 1)
    # Other stages are done, so that nothing else can lack.
    others = DoneStages(done=dict.fromkeys(stage for stage in stages_of(job) if stage[0] != "train"))
    assert [lack.stage for lack in shortfalls(job, sizes(job, machine, long), machine, others)] == ["train"]
    found = suggest(job, machine, long, others)
    assert found
    assert not found.lacks
    changed = sizes(job.under(with_settings(job.recipe, found.settings)), machine, long).first["train"]
    assert changed.total <= machine.memory


def test_only_what_is_still_to_come_counts(job):
    machine = replace(MACHINE, memory=1000)
    every = shortfalls(job, sizes(job, machine, LENGTHS), machine, DoneStages())
    assert {lack.stage for lack in every} == {"import", "rollouts", "train", "merge", "export"}
    done = DoneStages(done=dict.fromkeys(stage for stage in stages_of(job) if stage[0] != "export"))
    assert [lack.stage for lack in shortfalls(job, sizes(job, machine, LENGTHS), machine, done)] == ["export"]


def test_a_full_disk(job):
    machine = replace(MACHINE, disk=1000)
    with pytest.raises(UserError, match=r"GB of disk in .*, 0.0 GB are free: make room or move `out`"):
        require_room_on(job, machine, LENGTHS, DoneStages())
    # What the folder holds already need not be free.
    held = max(sizes(job, machine, LENGTHS).disk.values())
    require_room_on(job, machine, LENGTHS, DoneStages(bytes=held))


def test_a_gpu_that_is_too_small(job):
    machine = replace(MACHINE, device="cuda", learner_memory=10)
    lacks = shortfalls(job, sizes(job, machine, LENGTHS), machine, DoneStages())
    assert (lacks[0].stage, lacks[0].what) == ("train", "GPU memory")


def test_stages_in_their_order(job):
    assert stages_of(job) == [
        ("import", 0), ("rollouts", 1), ("train", 1), ("merge", 1),
        ("rollouts", 2), ("train", 2), ("merge", 2), ("export", 2),
    ]  # fmt: skip
    watched = replace(job, watched=QUERIES[:1])
    assert ("base model", 0) in stages_of(watched)
    assert ("evaluate", 2) in stages_of(watched)
    unwatched = watched.under(job.recipe.model_copy(update={"evaluate": Evaluate(queries=0)}))
    assert ("evaluate", 2) not in stages_of(unwatched)


def test_slots_that_nobody_measured(job):
    job = job.under(with_settings(job.recipe, {"sampler.slots": "auto"}))
    assert sizes(job, MACHINE, assumed(job.recipe.foresight), slots=1).engine.slots == 8
    assert sizes(job, MACHINE, assumed(job.recipe.foresight), slots=32).engine.slots == 32


def test_a_run_that_has_begun_is_told_of_nothing_that_makes_it_another_one(job):
    """What would: half of the tokens, another precision or type of cache. The line led to a second refusal."""
    others = 0
    for memory in (2 * 10**8, 10**8, 5 * 10**7, 2 * 10**7):
        for history in (DoneStages(), DoneStages({("rollouts", 1): None})):
            if found := suggest(job, replace(MACHINE, memory=memory), LENGTHS, history):
                same = job.under(with_settings(job.recipe, found.settings)).identity == job.identity
                assert same or not history.done, found.settings
                others += not same
    assert others, "or this shows nothing"
