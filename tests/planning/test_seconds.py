from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from genius_lite.pipeline.job import Job
from genius_lite.planning.probe import Probe, Response
from genius_lite.planning.rates import Convert, Decode, Learn, Rates, reckoned_decode
from genius_lite.planning.seconds import Cost, Expected, cost, session
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


def under(known: Expected, **sections: object) -> Expected:
    """The same work under a recipe with other settings."""
    return replace(known, job=known.job.under(known.job.recipe.model_copy(update=sections)))


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
    # The adapter is applied to the base in the types of the rounds.
    assert cost(under(known, policy="adapter"), "rollouts", 2).seconds == second.seconds


def test_training_by_hand(known):
    # Forward: the reference, the margin's (all 27 pairs, with the adapter and without), 8 responses of 4 + 50 tokens;
    # two epochs of updates.
    expected = 3.0 + (2000 + 2 * 2000 + 8 * 54) * 0.01 + 2 * 2000 * 0.03
    assert cost(known, "training", 2).seconds == pytest.approx(expected)
    # Libraries are loaded once.
    assert cost(known, "training", 1).seconds == pytest.approx(expected + 6)
    # In fp32 the base's own scores are of that already.
    exact = under(known, learner=Learner(epochs=2, precision="fp32"))
    assert cost(exact, "training", 2).seconds == pytest.approx(expected - 2000 * 0.01)


def test_a_merge_and_its_check_by_hand(known):
    # Of six questions a pair: both responses, by the policy, its base, and that with the adapter.
    scored = 6 * 2 * 50
    scoring = 3 * session(QUICK, Sampled(0, 6 * 4, 0), scored)
    merged, rounded = 2e-6 * 78_400, 3e-6 * 78_400
    found = cost(known, "merge, check", 1)
    assert found.seconds == pytest.approx(merged + rounded + scoring)
    assert found.tokens == pytest.approx(scored)
    # The base is rounded once, and the first file is checked.
    assert cost(known, "merge, check", 2) == Cost(pytest.approx(merged), 0)
    each = under(known, quantize=Quantize(type="Q8_0", check="each"))
    assert cost(each, "merge, check", 2) == Cost(pytest.approx(merged + scoring), scored)
    # Of long responses no more than the first 96 tokens after the two of a pair part.
    long = replace(known, probe=Probe([[Response(500, [])]], 0.0, "probe"))
    assert cost(long, "merge, check", 1).tokens == 6 * 2 * 96
    never = under(known, quantize=Quantize(type="Q8_0", check="never"))
    assert cost(never, "merge, check", 1).seconds == pytest.approx(merged + rounded)


def test_in_the_types_of_the_users_file_the_base_is_not_rounded_nor_evaluated_again(known):
    own = under(known, quantize=Quantize(check="never"))
    assert cost(own, "merge, check", 1) == cost(own, "merge, check", 2)
    assert cost(own, "evaluation", 1) == cost(own, "evaluation", 2)
    with_weights = replace(own, job=replace(own.job, weights=Path("full")))
    assert cost(with_weights, "merge, check", 1).seconds > cost(with_weights, "merge, check", 2).seconds
    assert cost(with_weights, "evaluation", 1).seconds > cost(with_weights, "evaluation", 2).seconds


def test_evaluation_by_hand(known):
    # One query is watched: 4 responses of 50 tokens, on 8 lanes.
    work = Sampled(200, 4, 200 / 8 + 50)
    assert cost(known, "base model", 0).seconds == pytest.approx(session(BASE, work))
    # After a round the base model, in the same types, scores the same tokens; before the first it answers itself.
    beside = session(QUICK, Sampled(0, 4, 0), 200)
    assert cost(known, "evaluation", 2).seconds == pytest.approx(session(QUICK, work) + beside)
    assert cost(known, "evaluation", 1).seconds == pytest.approx(2 * session(QUICK, work) + beside)
    assert cost(under(known, evaluate=Evaluate(queries=0)), "evaluation", 1).seconds == 0


def test_import_goes_by_parameters(known):
    assert cost(known, "import", 0).seconds == pytest.approx(6 + 1e-6 * 78_400)


def test_a_type_that_was_not_measured_counts_as_the_base(known):
    assert RATES.of_file("Q4_0") == BASE
    assert reckoned_decode(known.shape, 8_000_000_000, cores=2).tick == 1.0
