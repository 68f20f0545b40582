from __future__ import annotations

import asyncio

import numpy as np
import pytest

from genius_lite.errors import NonFiniteError
from genius_lite.foresight.search import foresee
from genius_lite.recipe import Foresight, Pairs
from genius_lite.records import Completion, Finish, Query, Rollout
from tests.support.rollouts import preference_pairs
from tests.support.scripted_sampler import ScriptedSampler

QUERY = Query("q", "question", [100, 101])
GREEDY = {"tau": 1e-6}


def step(*tokens: int, logprob: float = -1.0) -> Completion:
    return Completion(list(tokens), [logprob] * len(tokens), "step")


def end(*tokens: int, logprob: float = -1.0, finish: Finish = "end") -> Completion:
    return Completion(list(tokens), [logprob] * len(tokens), finish)


def search(sampler: ScriptedSampler, **options) -> Rollout:
    return asyncio.run(foresee(QUERY, sampler, Foresight(**options), (0, 1, "q")))


def test_two_steps_by_hand():
    script = {
        ("step", ()): [step(1), step(2), step(3)],
        ("end", (1,)): [end(11, 12, logprob=-0.5)],
        ("end", (2,)): [end(21, logprob=-0.1)],
        ("end", (3,)): [end(31, logprob=-0.9)],
        ("step", (1,)): [step(4), step(5), end(6, logprob=-0.4)],
        ("step", (2,)): [step(7), step(8), step(9)],
        ("end", (1, 4)): [end(41, logprob=-0.2)],
        ("end", (1, 5)): [end(51, logprob=-0.3)],
        ("end", (2, 7)): [end(71, logprob=-0.6)],
        ("end", (2, 8)): [end(81, logprob=-0.05)],
        ("end", (2, 9)): [end(91, logprob=-0.7)],
    }
    sampler = ScriptedSampler(script)
    rollout = search(sampler, beams=2, candidates=3, steps=2, max_tokens=50, **GREEDY)
    first, second = rollout.steps
    assert [c.value for c in first.candidates] == pytest.approx([-0.5, -0.1, -0.9])
    assert [c.advantage for c in first.candidates] == pytest.approx([-0.5, -0.1, -0.9])  # Q is 0 at first
    assert first.kept == [0, 1]
    # A = f - Q(parent): beam 0 is candidate 0 with Q = -0.5, beam 1 is candidate 1 with Q = -0.1.
    assert [c.beam for c in second.candidates] == [0, 0, 0, 1, 1, 1]
    assert [c.advantage for c in second.candidates] == pytest.approx([0.3, 0.2, 0.1, -0.5, 0.05, -0.6])
    assert second.candidates[2].future is None  # ended in the step: f is the step's own mean
    assert second.kept == [0, 4]
    assert rollout.response(1, 4) == [2, 8, 81]
    assert [3] in sampler.released


def test_without_a_search_whole_answers_share_nothing_but_the_prompt():
    ends = [end(1, 2, logprob=-0.5), end(3, logprob=-0.1), end(1, 2, logprob=-0.5), end(4, 4, finish="length")]
    sampler = ScriptedSampler({("end", ()): ends}, slowest_first=True)
    (only,) = search(sampler, beams=2, candidates=2, steps=0, max_tokens=9).steps
    assert sampler.calls == [("end", (), 4, 9)]
    assert [candidate.step for candidate in only.candidates] == ends  # one that repeats another is an answer too
    assert [(c.value, c.advantage) for c in only.candidates] == [(-0.5, -0.5), (-0.1, -0.1), (-0.5, -0.5), (-1.0, -1.0)]
    assert (only.kept, only.foreseen, len(sampler.released)) == ([], True, 4)
    for name, value in {
        "skip_agreeing": 0.5, "future_tokens": 5, "value": "step", "select": "greedy",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is about a search"):
            Foresight(steps=0, **{name: value})


def test_a_whole_answer_that_is_not_finite_stops_and_names_the_query():
    script = {("end", ()): [Completion([1, 2], [-1.0, np.nan], "end"), end(3)]}
    with pytest.raises(NonFiniteError, match=r"query q: the log-probabilities .* are not finite"):
        search(ScriptedSampler(script), beams=1, candidates=2, steps=0, max_tokens=9)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("at", [("step", ()), ("end", (1,))])
def test_log_probabilities_that_are_not_finite_stop_the_search_and_name_the_query(at, bad):
    script = {("step", ()): [step(1), step(2)], ("end", (1,)): [end(11)], ("end", (2,)): [end(21)]}
    broken = script[at][0]
    script[at][0] = Completion([*broken.tokens, 7], [-1.0, bad], broken.finish)
    script["end", (1, 7)] = [end(11)]
    with pytest.raises(ExceptionGroup) as error:
        search(ScriptedSampler(script), beams=1, candidates=2, steps=1, max_tokens=9)
    assert error.group_contains(NonFiniteError, match="query q: the log-probabilities .* are not finite")


def test_equal_candidates_are_one_whichever_ends_first():
    script = {
        ("step", ()): [step(1), step(2), step(1), step(1)],
        ("end", (1,)): [end(11)],
        ("end", (2,)): [end(21)],
    }
    rollouts = [
        search(ScriptedSampler(script, slowest_first=slow), beams=1, candidates=4, steps=1, max_tokens=9)
        for slow in (False, True)
    ]
    assert rollouts[0] == rollouts[1]
    assert [c.step.tokens for c in rollouts[0].steps[0].candidates] == [[1], [2]]
    assert [c.times for c in rollouts[0].steps[0].candidates] == [3, 1]
    assert rollouts[0].sampled_tokens == 4 + 2, "four steps of a token, and the futures of two"


def test_one_future_for_equal_candidates():
    script = {("step", ()): [step(1), step(1)], ("end", (1,)): [end(11)]}
    sampler = ScriptedSampler(script)
    search(sampler, beams=1, candidates=2, steps=1, max_tokens=9)
    assert [call[0] for call in sampler.calls] == ["step", "end"]


def test_finished_beams_are_not_expanded_and_end_the_search():
    script = {("step", ()): [end(1, logprob=-0.1), end(2, logprob=-0.2, finish="length")]}
    rollout = search(ScriptedSampler(script), beams=2, candidates=2, steps=4, max_tokens=9)
    assert len(rollout.steps) == 1
    assert rollout.steps[0].kept == [0, 1]


def test_a_live_beam_goes_on_beside_a_finished_one():
    script = {
        ("step", ()): [end(1, logprob=-0.1), step(2)],
        ("end", (2,)): [end(21, logprob=-0.2)],
        ("step", (2,)): [end(3), end(4)],
    }
    sampler = ScriptedSampler(script)
    rollout = search(sampler, beams=2, candidates=2, steps=4, max_tokens=9)
    assert [c.beam for c in rollout.steps[1].candidates] == [1, 1]
    assert rollout.response(1, 0) == [2, 3]


def test_the_limit_counts_the_whole_response():
    script = {
        ("step", ()): [step(1, 2), step(3)],
        ("end", (1, 2)): [end(5)],
        ("end", (3,)): [end(6)],
        ("step", (1, 2)): [end(7), end(8)],
        ("step", (3,)): [end(7), end(8)],
    }
    sampler = ScriptedSampler(script)
    search(sampler, beams=2, candidates=2, steps=2, max_tokens=10)
    assert {(until, response, limit) for until, response, _, limit in sampler.calls} == {
        ("step", (), 10), ("end", (1, 2), 8), ("end", (3,), 9), ("step", (1, 2), 8), ("step", (3,), 9),
    }  # fmt: skip


def test_a_step_that_fills_the_limit_is_not_live():
    script = {("step", ()): [step(1, 2), step(3, 4)]}
    rollout = search(ScriptedSampler(script), beams=2, candidates=2, steps=3, max_tokens=2)
    assert len(rollout.steps) == 1
    assert rollout.steps[0].candidates[0].future is None


AGREEING = {
    ("step", ()): [step(1, 2, 3), step(1, 2, 4), step(1, 2, 3)],
    ("end", (1, 2, 3)): [end(5, logprob=-0.5)],
    ("end", (1, 2, 4)): [end(6, logprob=-0.1)],
}


@pytest.mark.parametrize(("overlap", "foreseen"), [(0.6, False), (0.7, True)])
def test_foresight_is_skipped_where_candidates_agree(overlap, foreseen):
    # Jaccard: {1,2,3} and {1,2,4} share 2 of 4, twice; {1,2,3} and itself all: 2/3 on average.
    sampler = ScriptedSampler(AGREEING)
    (only,) = search(sampler, beams=2, candidates=3, steps=1, max_tokens=50, skip_agreeing=overlap).steps
    assert only.foreseen is foreseen
    assert len([call for call in sampler.calls if call[0] == "end"]) == (2 if foreseen else 0)
    assert [c.value for c in only.candidates] == pytest.approx([-0.5, -0.1] if foreseen else [0, 0])
    assert (only.repeats, only.kept) == (1, [0, 1])


def test_a_skipped_step_leaves_q_to_the_next_and_makes_no_pair():
    script = {
        ("step", ()): [step(1), step(2)],
        ("end", (1,)): [end(11, logprob=-0.5)],
        ("end", (2,)): [end(12, logprob=-9)],
        ("step", (1,)): [step(3, 4, 5), step(3, 4, 6)],
        ("step", (1, 3, 4, 5)): [step(7), step(8)],
        ("end", (1, 3, 4, 5, 7)): [end(9, logprob=-0.2)],
        ("end", (1, 3, 4, 5, 8)): [end(9, logprob=-0.3)],
    }
    script[("step", (1, 3, 4, 6))] = script[("step", (1, 3, 4, 5))]
    script[("end", (1, 3, 4, 6, 7))] = script[("end", (1, 3, 4, 5, 7))]
    script[("end", (1, 3, 4, 6, 8))] = script[("end", (1, 3, 4, 5, 8))]
    sampler = ScriptedSampler(script)
    rollout = search(sampler, beams=1, candidates=2, steps=3, max_tokens=50, skip_agreeing=0.5, **GREEDY)
    assert [s.foreseen for s in rollout.steps] == [True, False, True]
    assert [c.value for c in rollout.steps[1].candidates] == [-0.5, -0.5]
    assert [c.advantage for c in rollout.steps[2].candidates] == pytest.approx([0.3, 0.2])
    assert [p.step for p in preference_pairs([rollout], Pairs(), 0.1, (0,), lambda response: None)[0]] == [0, 2]


def test_a_thought_has_tokens_of_its_own():
    sampler = ScriptedSampler(AGREEING)
    search(sampler, beams=1, candidates=3, steps=1, max_tokens=50, thought_tokens=30)
    limits = {call[0]: call[3] for call in sampler.calls}
    assert limits == {"step": 80, "end": 80 - len(sampler.calls[-1][1])}


def test_futures_are_capped():
    sampler = ScriptedSampler(AGREEING)
    search(sampler, beams=1, candidates=3, steps=1, max_tokens=50, future_tokens=7)
    assert {call[3] for call in sampler.calls if call[0] == "end"} == {7}


def test_without_foresight_the_future_is_there_but_does_not_count():
    script = {
        ("step", ()): [step(1, 2, logprob=-0.3), step(3, logprob=-0.2)],
        ("end", (1, 2)): [end(11, logprob=-0.1)],
        ("end", (3,)): [end(31, logprob=-0.9)],
        ("step", (3,)): [step(4, logprob=-0.7), end(5, 6, logprob=-0.4)],
        ("end", (3, 4)): [end(41, logprob=-0.1)],
    }
    options = {"beams": 1, "candidates": 2, "steps": 2, "max_tokens": 9, **GREEDY}
    first, second = (rollout := search(ScriptedSampler(script), value="step", **options)).steps
    assert [c.value for c in first.candidates] == pytest.approx([-0.3, -0.2])
    assert [c.advantage for c in first.candidates] == pytest.approx([-0.3, -0.2])
    assert first.kept == [1]  # by its future it would be 0
    # Q of the beam is its step's -0.2; the last candidate ended, its f is the step's either way.
    assert [c.value for c in second.candidates] == pytest.approx([-0.7, -0.4])
    assert [c.advantage for c in second.candidates] == pytest.approx([-0.5, -0.2])
    assert [rollout.response(s, i) for s in (0, 1) for i in (0, 1)] == [[1, 2, 11], [3, 31], [3, 4, 41], [3, 5, 6]]
    pairs = preference_pairs([rollout], Pairs(), 0.1, (0,), lambda response: None)[0]
    assert [(p.chosen_tokens, p.rejected_tokens) for p in pairs] == [([3, 31], [1, 2, 11]), ([3, 5, 6], [3, 4, 41])]


def test_greedy_selection_keeps_the_highest_whatever_tau():
    script = {
        ("step", ()): [step(i) for i in range(1, 5)],
        **{("end", (i,)): [end(9, logprob=f)] for i, f in enumerate((-0.5, -0.1, -0.4, -0.1), 1)},
    }
    options = {"beams": 2, "candidates": 4, "steps": 1, "max_tokens": 9, "tau": 100.0}
    kept = [
        asyncio.run(foresee(QUERY, ScriptedSampler(script), Foresight(select=select, **options), (seed,))).steps[0].kept
        for select in ("greedy", "resample")
        for seed in range(20)
    ]
    assert kept[:20] == [[1, 3]] * 20
    assert kept[20:] != [[1, 3]] * 20  # nearly uniform draws do not agree with it twenty times
