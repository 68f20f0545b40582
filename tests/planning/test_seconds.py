from __future__ import annotations

from dataclasses import replace

import pytest

from genius_lite.job import Job
from genius_lite.planning.probe import Probe, Response
from genius_lite.planning.rates import Convert, Decode, Learn, Rates, reckoned_decode
from genius_lite.planning.seconds import Expected, cost, session
from genius_lite.planning.shape import Shape
from genius_lite.planning.tokens import Learned, Round, Sampled
from genius_lite.recipe import Evaluate, Foresight, Learner, Model, Quantize, Queries, Recipe
from genius_lite.records import Query
from genius_lite.weights import gguf_file

QUERIES = [Query(f"q{n}", "?", [1, 2, 3, 4]) for n in range(10)]
BASE = Decode(start=2.0, tick=0.1, sampled=0.01, prefilled=0.02, scored=0.03)
QUICK = Decode(start=1.0, tick=0.05, sampled=0.005, prefilled=0.01, scored=0.015)
RATES = Rates({"base": BASE, "F16": BASE, "Q8_0": QUICK}, Learn(3.0, 0.01, 0.03), Convert(1e-6, 2e-6, 3e-6), {})
WORK = Round(Sampled(1000, 40, 50), Learned(pairs=27, tokens=2000, packs=5, largest=400, counted=300))


@pytest.fixture
def known(tiny_llama) -> Expected:
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
    return Expected(job, Shape.of(source), Probe([[Response(50, [])]], 0.0, "probe"), WORK, RATES, slots=8)


def test_a_session_by_hand():
    # 50 decodes, 1,000 sampled tokens, 40 of prompts, 10 scored, and 6 % between them.
    assert session(BASE, WORK.rollouts, 10) == pytest.approx(
        2 + 1.06 * (50 * 0.1 + 1000 * 0.01 + 40 * 0.02 + 10 * 0.03)
    )
    assert BASE.per_second(8) == pytest.approx(8 / 0.18)


def test_rollouts_are_sampled_with_the_base_model_first(known):
    first, second = cost(known, "rollouts", 1), cost(known, "rollouts", 2)
    assert first.seconds == session(BASE, WORK.rollouts)
    assert second.seconds == session(QUICK, WORK.rollouts)
    assert first.tokens == second.tokens == 1000
    adapter = replace(known, job=known.job.under(known.job.recipe.model_copy(update={"policy": "adapter"})))
    assert cost(adapter, "rollouts", 2).seconds == first.seconds


def test_training_by_hand(known):
    # Forward: the reference, the margin's (all 27 pairs), 8 responses of 4 + 50 tokens; two epochs of updates.
    expected = 3.0 + (2000 + 2000 + 8 * 54) * 0.01 + 2 * 2000 * 0.03
    assert cost(known, "training", 2).seconds == pytest.approx(expected)
    # Libraries are loaded once.
    assert cost(known, "training", 1).seconds == pytest.approx(expected + 6)


def test_the_check_of_a_quantized_file_by_hand(known):
    # 27 pairs of nine tenths of the queries: 16 of those, and the 3 of the tenth that is held out. All ten queries are
    # asked for 64 tokens each.
    pairs, asked = 16 + 3, 10 * 64
    scored = 2 * pairs * 50 + asked
    sampling = session(BASE, Sampled(asked, 40, asked / 4))
    scoring = 2 * session(BASE, Sampled(0, 40, 0), scored) + 2 * session(QUICK, Sampled(0, 40, 0), scored)
    made = (2 * 2e-6 + 2 * 3e-6) * 78_400
    found = cost(known, "merge, check", 1)
    assert found.seconds == pytest.approx(sampling + scoring + made)
    assert found.tokens == pytest.approx(scored)


def test_evaluation_by_hand(known):
    # One query is watched: 4 responses of 50 tokens, on 8 lanes.
    work = Sampled(200, 4, 200 / 8 + 50)
    assert cost(known, "base model", 0).seconds == pytest.approx(session(BASE, work))
    # After a round the base model scores the same tokens.
    beside = session(BASE, Sampled(0, 4, 0), 200)
    assert cost(known, "evaluation", 1).seconds == pytest.approx(session(QUICK, work) + beside)
    nothing = known.job.under(known.job.recipe.model_copy(update={"evaluate": Evaluate(queries=0)}))
    assert cost(replace(known, job=nothing), "evaluation", 1).seconds == 0


def test_import_goes_by_parameters(known):
    assert cost(known, "import", 0).seconds == pytest.approx(6 + 1e-6 * 78_400)


def test_a_type_that_was_not_measured_counts_as_the_base(known):
    assert RATES.of_file("Q4_0") == BASE
    assert reckoned_decode(known.shape, 8_000_000_000, cores=2).tick == 1.0
