"""What holds of re-sampling, pairs and filters whatever the rollouts are."""

from __future__ import annotations

from itertools import combinations, pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genius_lite.errors import NonFiniteError
from genius_lite.foresight.filters import Vote, refusal
from genius_lite.foresight.resample import draw_without_replacement, foresight_distribution, take_highest
from genius_lite.recipe import Pairs
from genius_lite.records import PreferencePair, Rollout
from tests.support.rollouts import last_digit, preference_pairs, rollouts

values = st.lists(st.floats(-20, 0), min_size=1, max_size=6)
taus = st.floats(0.05, 5)
seeds = st.integers(0, 2**32 - 1)
configurations = st.builds(
    Pairs,
    choose=st.sampled_from(["best", "random"]),
    negatives=st.sampled_from(["foresight", "uniform"]),
    min_gap=st.just(0.0),
    truncated=st.just("keep"),
    looping=st.just("keep"),
)


@given(values, taus, st.floats(-50, 50), st.randoms(use_true_random=False))
def test_the_distribution_knows_neither_order_nor_zero(f, tau, shift, random):
    p = foresight_distribution(f, tau)
    assert foresight_distribution([v + shift for v in f], tau) == pytest.approx(p, abs=1e-9)
    assert foresight_distribution([2 * v for v in f], 2 * tau) == pytest.approx(p, abs=1e-9)
    order = random.sample(range(len(f)), len(f))
    assert foresight_distribution([f[i] for i in order], tau) == pytest.approx(p[order], abs=1e-12)
    ratios = [(p[a] / p[b], np.exp((f[a] - f[b]) / tau)) for a in range(len(f)) for b in range(len(f)) if p[b] > 1e-200]
    assert all(ours == pytest.approx(theirs, rel=1e-6) for ours, theirs in ratios)


@given(values, taus, st.integers(0, 8), seeds)
def test_draws_are_without_replacement(f, tau, n, seed):
    drawn = draw_without_replacement(f, tau, n, np.random.default_rng(seed))
    assert drawn == sorted({*drawn})
    assert {*drawn} <= {*range(len(f))}
    assert len(drawn) == min(n, len(f))


@given(values, taus, st.floats(-50, 50), seeds)
def test_the_same_noise_draws_the_same_from_shifted_values(f, tau, shift, seed):
    assume(len({round(v / tau, 3) for v in f}) == len(f))
    drawn = [draw_without_replacement(g, tau, 2, np.random.default_rng(seed)) for g in (f, [v + shift for v in f])]
    assert drawn[0] == drawn[1]


@given(values, taus, seeds)
def test_of_more_draws_the_fewer_are_a_part(f, tau, seed):
    drawn = [{*draw_without_replacement(f, tau, n, np.random.default_rng(seed))} for n in range(len(f) + 1)]
    assert all(fewer < more for fewer, more in pairwise(drawn))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 0), min_size=2, max_size=4), st.floats(0.2, 2), st.integers(0, 99))
def test_two_draws_are_as_one_after_the_other(f, tau, seed):
    n, p = 1500, foresight_distribution(f, tau)
    rng = np.random.default_rng(seed)
    seen = np.zeros((len(f), len(f)))
    for _ in range(n):
        a, b = draw_without_replacement(f, tau, 2, rng)
        seen[a, b] += 1
    for a, b in combinations(range(len(f)), 2):
        exact = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
        # Six standard deviations, over some hundred comparisons.
        assert seen[a, b] / n == pytest.approx(exact, abs=6 * np.sqrt(max(0, exact * (1 - exact)) / n) + 1e-3)


@given(values, st.integers(0, 8))
def test_the_highest_are_no_lower_than_the_rest(f, n):
    taken = take_highest(f, n)
    assert (taken, len(taken)) == (sorted({*taken}), min(n, len(f)))
    rest = [v for i, v in enumerate(f) if i not in taken]
    assert not taken or not rest or min(f[i] for i in taken) >= max(rest)


def pairs_of(rollout: Rollout, cfg: Pairs, tau: float, seed: int) -> list[PreferencePair]:
    return preference_pairs([rollout], cfg, tau, (seed,), last_digit)[0]


@settings(max_examples=300, deadline=None)
@given(rollouts(), configurations, taus, seeds)
def test_pairs_are_two_different_responses_of_a_step(rollout, cfg, tau, seed):
    pairs = pairs_of(rollout, cfg, tau, seed)
    assert pairs == pairs_of(rollout, cfg, tau, seed)
    steps = [pair.step for pair in pairs]
    assert steps == sorted({*steps})
    for step in rollout.steps:
        responses = [rollout.response(step.index, i) for i in range(len(step.candidates))]
        of_step = [pair for pair in pairs if pair.step == step.index]
        assert len(of_step) == (step.foreseen and len({*map(tuple, responses)}) > 1)
        for pair in of_step:
            assert pair.chosen_tokens != pair.rejected_tokens
            assert (pair.query_id, pair.prompt_tokens) == (rollout.query.id, rollout.query.tokens)
            for tokens, value, advantage, ended in (
                (pair.chosen_tokens, pair.chosen_value, pair.chosen_advantage, pair.chosen_ended),
                (pair.rejected_tokens, pair.rejected_value, pair.rejected_advantage, pair.rejected_ended),
            ):
                same = [c for c, r in zip(step.candidates, responses, strict=True) if r == tokens]
                assert (value, advantage, ended) in [(c.value, c.advantage, c.last.finish == "end") for c in same]
            if cfg.choose == "best":
                assert pair.chosen_value == max(c.value for c in step.candidates)


@given(rollouts(), st.sampled_from([np.nan, np.inf, -np.inf]), configurations, st.data())
def test_a_value_that_is_not_finite_is_named(rollout, bad, cfg, data):
    number = data.draw(st.sampled_from([s.index for s in rollout.steps if s.foreseen]))
    step = rollout.steps[number]
    broken = msgspec.structs.replace(step.candidates[0], value=float(bad))
    step = msgspec.structs.replace(step, candidates=[broken, *step.candidates[1:]])
    steps = [*rollout.steps[:number], step, *rollout.steps[number + 1 :]]
    with pytest.raises(NonFiniteError, match=f"query q, step {number}: a candidate's value is not finite"):
        pairs_of(Rollout(rollout.query, steps), cfg, 0.1, 0)


filters = st.builds(
    Pairs,
    choose=st.sampled_from(["best", "agreed", "random"]),
    min_gap=st.sampled_from([0.0, 0.25, 1.0]),
    looping=st.sampled_from(["keep", "chosen", "either"]),
    truncated=st.sampled_from(["keep", "chosen", "either"]),
    max_length_ratio=st.sampled_from([None, 1.25, 2.0]),
    agreement=st.sampled_from([None, 0.25, 0.5, 1.0]),
)
OFF = {"min_gap": 0.0, "looping": "keep", "truncated": "keep", "max_length_ratio": None, "agreement": None}
PAIRWISE_OFF = {"min_gap": 0.0, "max_length_ratio": None}


@settings(max_examples=300, deadline=None)
@given(rollouts(), filters, seeds)
def test_a_step_has_a_pair_that_passes_or_is_counted(rollout, cfg, seed):
    pairs, left_out = preference_pairs([rollout], cfg, 0.1, (seed,), last_digit)
    free, undecided = preference_pairs([rollout], cfg.model_copy(update=OFF), 0.1, (seed,), last_digit)
    assert len(pairs) + sum(left_out.values()) == len(free) + sum(undecided.values())
    assert all(refusal(pair, cfg, Vote(rollout, last_digit)) is None for pair in pairs)
    # What no filter refuses is what would be drawn without any.
    kept = [pair for pair in free if refusal(pair, cfg, Vote(rollout, last_digit)) is None]
    assert all(pair in pairs for pair in kept)
    for p in pairs:
        assert p.chosen_value - p.rejected_value >= cfg.min_gap or not cfg.min_gap
        assert p.chosen_ended or cfg.truncated == "keep"
        assert p.rejected_ended or cfg.truncated != "either"
        lengths = sorted((len(p.chosen_tokens), len(p.rejected_tokens)))
        assert cfg.max_length_ratio is None or lengths[1] <= cfg.max_length_ratio * lengths[0]
        assert cfg.looping == "keep" or not looped(p.chosen_tokens)
        assert cfg.looping != "either" or not looped(p.rejected_tokens)


def looped(tokens: list[int]) -> bool:
    """Say whether the last 24 tokens are one unit of up to three, again and again."""
    return any(tokens[-24:] == (tokens[-unit:] * 24)[-24:] for unit in (1, 2, 3))


@settings(max_examples=200, deadline=None)
@given(rollouts(), filters, seeds)
def test_a_filter_less_never_gives_fewer_pairs(rollout, cfg, seed):
    """Of filters that may refuse the chosen response itself this holds for random pairs only.

    Without such a filter another response may be chosen, with which the other filters let no pair pass.
    """
    steps = {pair.step for pair in pairs_of(rollout, cfg, 0.1, seed)}
    for name, setting in OFF.items() if cfg.choose == "random" else PAIRWISE_OFF.items():
        assert steps <= {pair.step for pair in pairs_of(rollout, cfg.model_copy(update={name: setting}), 0.1, seed)}


@settings(max_examples=200, deadline=None)
@given(st.tuples(rollouts("a"), rollouts("b")), filters, seeds)
def test_a_query_has_its_pairs_whatever_stands_beside_it(two, cfg, seed):
    together, left_out = preference_pairs(two, cfg, 0.1, (seed,), last_digit)
    alone = [preference_pairs([rollout], cfg, 0.1, (seed,), last_digit) for rollout in two]
    assert together == alone[0][0] + alone[1][0]
    assert left_out == {name: alone[0][1][name] + alone[1][1][name] for name in left_out}
