"""Seconds by hand, and rates from seconds that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from genius_lite.evaluate.measure import EvalModel
from genius_lite.evaluate.remembered import Inquiry
from genius_lite.pipeline.job import Job
from genius_lite.plan.fit import Sizes
from genius_lite.plan.history import FOUND, Decode, DoneStages, Rates
from genius_lite.plan.lengths import Lengths, ResponseLength
from genius_lite.plan.memory import Training
from genius_lite.plan.rehearse import decode_rates, learner_rates
from genius_lite.plan.seconds import Known, stage_cost
from genius_lite.plan.tokens import SamplingWork, Work
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Pairs, Quantize, Queries, Recipe
from genius_lite.records import Completion, Query
from genius_lite.results.rounds import Moments, Stats, Timing
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights import gguf_file

QUERIES = [Query(f"q{n}", "?", [1, 2, 3, 4]) for n in range(10)]
BASE = Decode(start=2.0, tick=0.1, sampled=0.01, scored=0.02)
MADE = Decode(start=1.0, tick=0.05, sampled=0.005, scored=0.03)
LENGTHS, ANSWERS = (Lengths([[ResponseLength(tokens, [])]], 0.0, "rehearsal") for tokens in (50, 60))
RATES = Rates(
    BASE, MADE, load=3.0, forward=0.01, scored=0.04, imported=9.0, rounded=5.0, merged=7.0, others=0.0,
    lengths=LENGTHS, answers=ANSWERS,
)  # fmt: skip
WORK = Work(SamplingWork(1000, 40, 50), pairs=27, learned=2000, updated=1500, passes=[400], counted=300)
SIZES = Sizes(
    {}, {}, {}, WORK, EngineSettings(slots=8, context=256, threads=2), Training("bf16", True, 400, 300, 15, 0.5)
)


@pytest.fixture
def known(tiny_llama) -> Known:
    recipe = Recipe(
        out="runs/r",
        model=Model(gguf=str(tiny_llama)),
        queries=Queries(source="q.txt"),
        foresight=Foresight(max_tokens=100),
        quantize=Quantize(type="Q8_0"),
        learner=Learner(epochs=2),
    )
    source = gguf_file.read(tiny_llama)
    job = Job(recipe, source, None, QUERIES, 0, frozenset({"q0"}), QUERIES[:1], [], 0).under(recipe)
    return Known(job, DoneStages(), LENGTHS, SIZES, RATES)


def under(known: Known, **sections: object) -> Known:
    """The same work under a recipe with other settings."""
    return replace(known, job=known.job.under(known.job.recipe.model_copy(update=sections)))


def test_a_session_by_hand():
    # 50 decodes, 1,000 sampled tokens, 40 of prompts for half as much.
    assert BASE.session(WORK.rollouts) == pytest.approx(2 + 50 * 0.1 + (1000 + 20) * 0.01)
    # 10 tokens that are looked up, behind 40 of prompts.
    assert BASE.scoring(10, 40) == pytest.approx(2 + (10 + 20) * 0.02)
    assert BASE.times(3) == Decode(2.0, pytest.approx(0.3), pytest.approx(0.03), pytest.approx(0.06))


def test_rates_are_found_again():
    # Each step takes 0.2 s and 0.05 s more for each branch; of 4 s a quarter is drawing, which goes with both.
    steps = Moments()
    for branches in (16, 12, 8, 4):
        steps.add(branches, 0.2 + 0.05 * branches)
    assert steps.line() == (pytest.approx(0.2), pytest.approx(0.05))
    stats = Stats(40, 20, 4, 3.0, 1.0, busy_s=4.0, branch_steps=steps)
    found = decode_rates(Timing("rollouts", 7.0, 40, sampler=stats))
    assert found.start == 3.0
    assert found.tick / found.sampled == pytest.approx(0.2 / 0.05)
    assert found.session(SamplingWork(40, 20, 4)) == pytest.approx(7.0)
    assert found.scored == found.sampled
    # Where half of the tokens were decoded with others', a token of the run takes half a row, and half a step.
    together = decode_rates(Timing("rollouts", 7.0, 80, sampler=msgspec.structs.replace(stats, sampled=80, shared=40)))
    assert (together.tick, together.sampled) == (pytest.approx(found.tick / 2), pytest.approx(found.sampled / 2))
    assert (together.start, together.scored) == (found.start, pytest.approx(found.scored))
    # Steps that were all alike cannot tell what a step takes by itself.
    steps = Moments()
    for seconds in (1.0, 1.1):
        steps.add(8, seconds)
    alike = msgspec.structs.replace(stats, branch_steps=steps)
    found = decode_rates(Timing("rollouts", 7.0, 40, sampler=alike))
    assert found.tick / found.sampled == 2 and found.session(SamplingWork(40, 20, 4)) == pytest.approx(7.0)


def test_a_training_is_taken_apart():
    # Forward takes half an update, of 9 s on average, and both passes of the margin take 10 s.
    load, forward, scored = learner_rates([100.0, 119.0, 129.0, 137.0, 142.0, 147.0], 52.0, 40, checkpointing=False)
    assert (forward, scored) == (0.1125, 0.25)
    assert load == 52.0 - 4.5 - 28.0
    assert learner_rates([0.0, 9.0, 19.0, 31.0, 36.0], 40.0, 10, checkpointing=True)[1:] == (
        pytest.approx(11 / 3 / 10),
        0.5,
    )


def test_rates_of_another_version_are_none(tmp_path):
    assert Rates.read(tmp_path) is None
    (tmp_path / FOUND).write_bytes(msgspec.json.encode(RATES))
    assert Rates.read(tmp_path) == RATES
    (tmp_path / FOUND).write_text('{"base": 1}')
    assert Rates.read(tmp_path) is None


def test_rollouts_are_sampled_with_the_base_model_first(known):
    assert stage_cost(known, "rollouts", 1) == (BASE.session(WORK.rollouts), 1000)
    assert stage_cost(known, "rollouts", 2) == (MADE.session(WORK.rollouts), 1000)
    # What was made answers like the responses that ended: of 25 and 100 tokens, the latter cut off.
    some = Lengths([[ResponseLength(25, []), ResponseLength(100, [])]], 0.0, "rehearsal")
    assert some.ended(100).mean == 25
    assert Lengths([[ResponseLength(100, [])]], 0.0, "rehearsal").ended(100).mean == 100, "none did"
    cut = replace(known, lengths=some)
    assert stage_cost(cut, "rollouts", 1) == (BASE.session(WORK.rollouts), 1000)
    shorter = MADE.session(SamplingWork(400, 40, 20))
    assert stage_cost(cut, "rollouts", 2) == (pytest.approx(shorter), pytest.approx(400))
    kept = under(cut, pairs=Pairs(truncated="keep"))
    assert stage_cost(kept, "rollouts", 2) == (MADE.session(WORK.rollouts), 1000)
    # A third of the queries are searched, and a round before sampled 600 tokens in 30 s.
    begun = replace(known, history=DoneStages({("rollouts", 1): Timing("rollouts", 30.0, 600)}, searched={2: 3}))
    assert stage_cost(begun, "rollouts", 2) == (pytest.approx(20.0), pytest.approx(400))
    # Of these it had sampled a third itself, in a third of the time; the others came in shards.
    third = replace(begun, history=DoneStages({("rollouts", 1): Timing("rollouts", 10.0, 200, untimed=400)}, {2: 3}))
    assert stage_cost(third, "rollouts", 2) == stage_cost(begun, "rollouts", 2)
    none = replace(begun, history=DoneStages({("rollouts", 1): Timing("rollouts", 0.0, 0, untimed=600)}))
    assert stage_cost(none, "rollouts", 2) == (MADE.session(WORK.rollouts), 600), "the rehearsal tells"


def test_training_by_hand(known):
    # Forward: the reference, 8 responses of 4 + 50 tokens, two epochs of updates whose passes are made forward, half of
    # it again, and backward; the margin of 16 of the 27 pairs.
    expected = 3.0 + (2000 + 8 * 54) * 0.01 + 2 * 2.5 * 1500 * 0.01 + 16 / 27 * 2000 * 0.04
    assert stage_cost(known, "train", 1) == (pytest.approx(expected), 3000)


def test_a_merge_and_its_check_by_hand(known):
    # Of four questions a pair: both responses, each behind its prompt of 4 tokens, by the policy, its base, and that
    # with the adapter.
    scored = 4 * 2 * 48  # of 50 tokens
    scoring = 3 * MADE.scoring(scored, 2 * 4 * 4)
    assert stage_cost(known, "merge", 1) == (pytest.approx(7 + 5 + scoring), scored)
    # The base is rounded once, and the first file is checked.
    assert stage_cost(known, "merge", 2) == (7, 0)
    each = under(known, quantize=Quantize(type="Q8_0", check="each"))
    assert stage_cost(each, "merge", 2) == (pytest.approx(7 + scoring), scored)
    # Of long responses no more than the first 48 tokens after the two of a pair part.
    long = replace(known, lengths=Lengths([[ResponseLength(500, [])]], 0.0, "rehearsal"))
    assert stage_cost(long, "merge", 1)[1] == 4 * 2 * 48


def test_evaluation_by_hand(known):
    # One query is watched: 4 responses, which are as long as answers at the evaluation's temperature, on 8 slots.
    work = SamplingWork(240, 4, 60)
    assert stage_cost(known, "base model", 0) == (pytest.approx(BASE.session(work)), 240)
    # After a round the base model, in the same types, scores the same tokens; before the first it answers itself.
    judged = MADE.session(work) + MADE.scoring(240, 4 * 4)
    assert stage_cost(known, "evaluate", 2)[0] == pytest.approx(judged)
    assert stage_cost(known, "evaluate", 1)[0] == pytest.approx(judged + MADE.session(work))
    assert stage_cost(under(known, evaluate=Evaluate(queries=0)), "evaluate", 1)[0] == 0
    # In the types of the user's file there is no other base to evaluate, but beside `model.weights`.
    own = under(known, quantize=Quantize())
    assert stage_cost(own, "evaluate", 1) == stage_cost(own, "evaluate", 2)
    with_weights = replace(own, job=replace(own.job, weights=Path("full")))
    assert stage_cost(with_weights, "evaluate", 1) > stage_cost(with_weights, "evaluate", 2)


def test_what_the_base_model_answered_in_an_earlier_run_is_not_asked_again(known, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cfg, job = known.job.recipe.evaluate, known.job
    who = EvalModel(job.source.path, SIZES.engine, job.recipe.answer_tokens, job.recipe.seed, cfg.query_samples)
    asked = Inquiry(who, job.source, "", job.watched)
    asked.remember({("", "q0"): [Completion([5], [-1.0], "end")] * cfg.query_samples}, 60.0)
    assert stage_cost(known, "base model", 0) == (0.0, 0.0)
    # Another seed asks for other responses, and so does a run that is not to look.
    seconds = BASE.session(SamplingWork(240, 4, 60))
    other = replace(known, job=job.under(job.recipe.model_copy(update={"seed": 7})))
    assert stage_cost(other, "base model", 0)[0] == pytest.approx(seconds)
    again = under(known, evaluate=Evaluate(queries=1, remember=False))
    assert stage_cost(again, "base model", 0)[0] == pytest.approx(seconds)


def test_other_programs_are_taken_off_and_nothing_is_made_up(known):
    disturbed = replace(known, rates=msgspec.structs.replace(RATES, others=0.5))
    # Half of the cores, where a third would have been idle: three quarters of the time were its own.
    assert stage_cost(disturbed, "import", 0)[0] == pytest.approx(0.75 * 9)
    hardly = replace(known, rates=msgspec.structs.replace(RATES, others=0.3))
    assert stage_cost(hardly, "import", 0)[0] == 9.0
    # What a round took is what it took.
    took = (Timing("train", 100.0, 1), Timing("train", 120.0, 1))
    earlier = replace(disturbed, history=DoneStages({("train", n): timing for n, timing in enumerate(took, 1)}))
    assert stage_cost(earlier, "train", 3)[0] == 110
    assert stage_cost(replace(known, rates=None), "train", 1) == (None, 0.0)
    assert stage_cost(replace(known, rates=None), "rollouts", 1) == (None, 1000)
