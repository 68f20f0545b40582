from __future__ import annotations

import asyncio

import pytest

from genius_lite.foresight.search import foresee
from genius_lite.plan import tokens
from genius_lite.plan.lengths import Lengths, ResponseLength
from genius_lite.plan.tokens import CountingSampler
from genius_lite.recipe import Foresight, Learner, Model, Queries, Recipe
from genius_lite.records import Query, Rollout
from genius_lite.sampler.interface import run_until_complete

QUERY = Query("q", "?", [1, 2, 3, 4, 5])
# Steps end after 10 and 20 of 30 tokens.
THIRTY = Lengths([[ResponseLength(30, [10, 20])]], 0.0, "rehearsal")
WHOLE = Lengths([[ResponseLength(30, [])]], 0.0, "rehearsal")  # in one step


def recipe(**foresight) -> Recipe:
    return Recipe(
        out="runs/r",
        model=Model(gguf="m.gguf"),
        queries=Queries(source="q.txt"),
        foresight=Foresight(**{"max_tokens": 100, **foresight}),
        learner=Learner(batch_pairs=1),
    )


def searched(found: Lengths, cfg: Foresight, lanes: int) -> tuple[Rollout, CountingSampler]:
    async def search() -> tuple[Rollout, CountingSampler]:
        sampler = CountingSampler(found, lanes)
        work = asyncio.ensure_future(foresee(QUERY, sampler, cfg, (0, 1, "q")))
        await sampler.serve(work)
        return work.result(), sampler

    return asyncio.run(search())


def test_a_search_counts_what_it_would_sample():
    rollout, sampler = searched(THIRTY, recipe(beams=2, candidates=4, steps=4).foresight, lanes=64)
    # The first step: 4 candidates of 10 tokens with futures of 20. The second: 4 of each of 2 beams, 10 and 10. The
    # third: 8 whose step of 10 ends the response. Then no beam is live.
    assert [len(step.candidates) for step in rollout.steps] == [4, 8, 8]
    assert sampler.sampled == 4 * 30 + 8 * 20 + 8 * 10
    assert rollout.sampled_tokens == sampler.sampled
    assert sampler.prefilled == 5
    # With lanes for all, each step takes as many decodes as its longest candidate: 30, 20 and 10.
    assert sampler.ticks == 60
    # Two lanes have twice as much to do as they can at once, and so on.
    assert searched(THIRTY, recipe(beams=2, candidates=4, steps=4).foresight, lanes=1)[1].ticks == sampler.sampled


def test_repeats_have_no_future():
    same = Lengths(THIRTY.responses, 1.0, "rehearsal")
    rollout, sampler = searched(same, recipe(beams=1, candidates=4, steps=1).foresight, lanes=8)
    assert [len(step.candidates) for step in rollout.steps] == [1]
    assert rollout.steps[0].repeats == 3
    assert sampler.sampled == 4 * 10 + 20


def test_limits_cut_responses():
    _, sampler = searched(THIRTY, recipe(beams=1, candidates=2, steps=1, max_tokens=15).foresight, lanes=8)
    assert sampler.sampled == 2 * 15
    _, sampler = searched(THIRTY, recipe(beams=1, candidates=2, steps=1, future_tokens=4).foresight, lanes=8)
    assert sampler.sampled == 2 * 14


def test_a_rounds_expectation():
    queries = [Query(f"q{n}", "?", [100 + n, 1, 2, 3]) for n in range(4)]
    found = tokens.expected_work(recipe(beams=1, candidates=2, steps=1), queries, WHOLE, 32, trees=True, on_cpu=True)
    assert found.rollouts.sampled == 4 * 2 * 30
    assert found.rollouts.prefilled == 4 * 4
    # One pair a query: a prompt of 4 tokens and two responses of 30 in a tree.
    assert found.pairs == 4
    assert found.learned == 4 * 64
    assert (set(found.passes), found.counted) == ({64}, 60)
    assert found.updated == found.learned
    apart = tokens.expected_work(recipe(beams=1, candidates=2, steps=1), queries, WHOLE, 32, trees=False, on_cpu=True)
    assert apart.learned == 4 * 2 * 34
    sft = recipe(beams=1, candidates=2, steps=1).model_copy(update={"learner": Learner(loss="sft", batch_pairs=1)})
    for trees, whole in ((True, 64), (False, 2 * 34)):
        work = tokens.expected_work(sft, queries, WHOLE, 32, trees=trees, on_cpu=True)
        assert (work.learned, work.updated) == (4 * whole, 4 * 34), "updates compute the chosen response alone"
        assert (set(work.passes), work.counted) == ({34}, 30)


def test_of_many_queries_some_stand_for_all():
    queries = [Query(f"q{n}", "?", [100 + n, 1]) for n in range(96)]
    found = tokens.expected_work(recipe(beams=1, candidates=2, steps=1), queries, WHOLE, 8, trees=True, on_cpu=True)
    assert found.rollouts.sampled == pytest.approx(96 * 60)
    assert found.pairs == 96


@pytest.mark.parametrize(
    ("found", "cfg", "sampled"),
    [
        (WHOLE, {"beams": 65_536, "candidates": 1, "steps": 0}, 65_536 * 30),
        (WHOLE, {"beams": 256, "candidates": 256, "steps": 0}, 65_536 * 30),
        # The first step has N candidates of 30 tokens with their futures, the second M x N that go on for 20.
        (THIRTY, {"beams": 256, "candidates": 256, "steps": 2}, 256 * 30 + 65_536 * 20),
        (THIRTY, {"beams": 16, "candidates": 64, "steps": 2}, 64 * 30 + 16 * 64 * 20),
    ],
)
def test_of_a_wide_search_a_narrow_one_stands_for_all(monkeypatch, found, cfg, sampled):
    """A plan of 65,536 candidates took minutes, and gigabytes."""
    asked, true = [], CountingSampler.extend

    def extend(self, node, n, **how):
        asked.append(n)
        return true(self, node, n, **how)

    monkeypatch.setattr(CountingSampler, "extend", extend)
    queries = [Query(f"q{n}", "?", [100 + n, 1]) for n in range(3)]
    work = tokens.expected_work(recipe(**cfg), queries, found, 32, trees=True, on_cpu=True)
    assert work.rollouts.sampled == pytest.approx(3 * sampled)
    assert work.rollouts.ticks == pytest.approx(3 * sampled / 32, rel=0.3)
    assert work.pairs == 3 * max(1, cfg["steps"])
    assert sum(asked) <= 32 * max(1, cfg["steps"]) * 2 * 128


def test_responses_asked_all_at_once():
    work = tokens.answered([5, 7], samples=4, lengths=THIRTY, slots=4)
    assert (work.sampled, work.prefilled) == (240, 12)
    assert work.ticks == 240 / 4  # every slot has two responses, one after the other


def test_later_steps_repeat_by_a_chance_of_their_own():
    found = Lengths(THIRTY.responses, 0.0, "rehearsal", later=1.0)
    rollout, _ = searched(found, recipe(beams=1, candidates=3, steps=2).foresight, lanes=8)
    assert [(len(step.candidates), step.repeats) for step in rollout.steps] == [(3, 0), (1, 2)]


def test_a_future_is_the_rest_of_the_response_that_its_step_is_from():
    several = Lengths([[ResponseLength(30, [10]), ResponseLength(50, [20])]], 0.0, "rehearsal")
    rollout, _ = searched(several, recipe(beams=1, candidates=8, steps=1).foresight, lanes=8)
    lengths = {len(c.tokens) for c in rollout.steps[0].candidates}
    assert lengths == {30, 50}
    assert all(len(c.step.tokens) == {30: 10, 50: 20}[len(c.tokens)] for c in rollout.steps[0].candidates)


def test_beams_go_by_the_values_that_were_seen():
    good, bad = ResponseLength(50, [10], value=-0.1), ResponseLength(30, [20], value=-2.0)
    rollout, _ = searched(Lengths([[good, bad]], 0.0, "rehearsal"), recipe(beams=1, candidates=8, steps=1).foresight, 8)
    (step,) = rollout.steps
    (kept,) = step.kept
    assert len(step.candidates[kept].tokens) == 50


def test_it_is_counted_also_where_a_loop_runs_already():
    """As in a notebook's cell; it was a RuntimeError."""

    def count():
        return tokens.expected_work(recipe(), [QUERY], THIRTY, 4, trees=True, on_cpu=True)

    async def cell():
        return count()

    assert asyncio.run(cell()) == count()


def test_a_windows_notebooks_policy_makes_no_loop_that_starts_no_process(monkeypatch):
    made = []

    def proactor():
        made.append(asyncio.SelectorEventLoop())
        return made[-1]

    async def one() -> int:
        return 1

    monkeypatch.setattr(asyncio, "ProactorEventLoop", proactor, raising=False)
    assert run_until_complete(one()) == 1
    assert len(made) == 1
