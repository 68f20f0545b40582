from __future__ import annotations

import math
import random
from itertools import pairwise

import msgspec
import pytest

from genius_lite.evaluate.signals import Observed, signals
from genius_lite.records import Finish


def said(
    *tokens: int,
    query: str = "q",
    logprobs: list[float] | None = None,
    base: list[float] | None = None,
    finish: Finish = "end",
    answer: str | None = None,
) -> Observed:
    return Observed(query, list(tokens), logprobs or [-1.0] * len(tokens), base or [], finish, answer)


def test_every_signal_of_a_few_responses():
    found = signals(
        [
            said(1, 2, 3, logprobs=[-1.0, -0.5, 0.0], base=[-1.0, -0.5, -math.log(2)], answer="4"),
            said(1, 2, 1, 2, 1, logprobs=[-0.5] * 5, base=[-0.5] * 5, answer="4", finish="length"),
            said(*[7] * 24, query="r", logprobs=[-0.25] * 24, base=[-0.25] * 24),
            said(5, 6, query="r", logprobs=[-1.0, -1.0], base=[-1.0, -1.0], answer="9"),
        ]
    )
    assert found.agreements == {"r": 0}
    assert {k: v for k, v in msgspec.structs.asdict(found).items() if k != "agreements"} == pytest.approx(
        {
            "entropy": (1.5 + 2.5 + 6.0 + 2.0) / 34,
            "distinct": (2 / 2 + 2 / 4 + 1 / 23 + 1 / 1) / 4,
            "loops": 1 / 4,
            "length": (3 + 5 + 24 + 2) / 4,
            "ended": 3 / 4,
            "unique": 2 / 2,  # of "r", of "q" only one response ended
            "agreement": 0,
            "parsed": 2 / 3,
            "kl": math.log(2) / 34,
            "responses": 4,
            "thinking": 0.0,
            "same": None,  # two queries have an answer
            "compared": 2,  # of "r"
            "stated": 2,
        }
    )


def test_one_answer_to_all_queries_shows_each_query_alike():
    """A policy that guesses one letter agrees with itself on each question, and so on all."""
    letters = [said(1, n, query=q, answer="B") for q in "pqr" for n in range(4)]
    assert signals([*letters, said(1, query="s")]).same is None, "the fourth states none"
    assert signals([*letters, said(1, query="s", answer="C")]).same == 3 / 4
    halves = [said(1, query="s", answer="B"), said(1, query="s", answer="C"), said(1, query="s", finish="length")]
    found = signals([*letters, *halves])
    assert (found.same, signals([*letters, said(1, query="s", answer="B")]).same) == (3.5 / 4, 1.0)


def test_what_was_cut_off_has_not_stated_its_answer():
    """A chain of thought that ran into the limit has numbers in it, none of which it came to."""
    cut = [said(1, n, answer="7", finish="length") for n in range(3)]
    found = signals([*cut, said(1, 2, answer="4")])
    assert (found.parsed, found.agreement, found.unique, found.agreements) == (1.0, None, None, {})
    found = signals([*cut, said(1, 2, answer="4"), said(1, 3, answer="4"), said(1, 4, answer="5")])
    assert (found.agreement, found.unique) == (1 / 3, 5 / 6)
    assert signals(cut).parsed == 0.0


def test_a_thought_that_did_not_end_is_counted():
    thoughts = (None, True, False, False)
    found = signals([msgspec.structs.replace(said(1, 2), thought_ended=over) for over in thoughts])
    assert found.thinking == 1 / 2


def test_the_base_model_is_not_away_from_itself():
    assert signals([said(1, 2)]).kl == 0.0


def test_a_certain_policy_has_no_entropy():
    assert str(signals([said(1, 2, logprobs=[0.0, 0.0])]).entropy) == "0.0"


def test_a_response_of_one_token_repeats_nothing():
    assert signals([said(2)]).distinct == 1.0


def test_responses_without_an_answer_count_by_their_tokens_and_agree_with_none():
    found = signals([said(1, 2), said(1, 2), said(1, 3), said(1, 4)])
    assert (found.unique, found.agreement, found.parsed) == (11 / 12, 0.0, 0.0)
    found = signals([said(1, 2, answer="5"), said(1, 3, answer="5"), said(1, 4), said(1, 5)])
    assert (found.unique, found.agreement, found.parsed) == (11 / 12, 1 / 6, 2 / 4)


def test_queries_count_alike_however_many_responses_they_have():
    rest = [said(1, query="r", answer="5")] * 3 + [said(1, query="r", answer="6")]
    found = signals([said(1, answer="5")] * 8 + rest)
    assert (found.unique, found.agreement) == ((1 / 2 + 3 / 4) / 2, (1 + 3 / 6) / 2)


@pytest.mark.parametrize("ended", [4, 6, 8])
def test_the_variety_of_answers_does_not_depend_on_how_many_responses_end(ended):
    """It did: a model that learned to end was told that it gives one answer, and one that forgot how looked better."""
    draw, found = random.Random(0), []
    for query in range(4000):
        answers = [str(draw.choices(range(3), [0.6, 0.2, 0.2])[0]) for _ in range(8)]
        ends = ["end"] * ended + ["length"] * (8 - ended)
        found += [said(1, query=str(query), answer=a, finish=how) for a, how in zip(answers, ends, strict=True)]
    seen = signals(found)
    assert seen.agreement == pytest.approx(0.6**2 + 2 * 0.2**2, abs=0.01)
    assert seen.unique == pytest.approx(1 - (0.6**2 + 2 * 0.2**2) / 2, abs=0.01)


@pytest.mark.parametrize("length", [2, 10, 33, 34, 60, 200])
def test_distinct_is_the_mean_over_all_windows_of_32_2_grams(length):
    draw = random.Random(length)
    tokens = [draw.randrange(5) for _ in range(length)]
    grams = list(pairwise(tokens))
    windows = [grams[at : at + 32] for at in range(max(len(grams) - 32, 0) + 1)]
    expected = sum(len(set(window)) / len(window) for window in windows) / len(windows)
    assert signals([said(*tokens)]).distinct == pytest.approx(expected)


def test_distinct_does_not_depend_on_length_and_sees_a_late_repetition():
    draw = random.Random(0)
    short, long = ([draw.randrange(40) for _ in range(n)] for n in (400, 4000))
    assert len(set(pairwise(long))) / 3999 < 0.5  # of the whole response it would
    assert signals([said(*short)]).distinct == pytest.approx(signals([said(*long)]).distinct, abs=0.01)
    assert signals([said(*range(50), *[1, 2] * 100)]).distinct < 0.4


def test_the_estimates_of_entropy_and_divergence_have_no_bias():
    policy, base = [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]
    tokens = random.Random(0).choices(range(3), policy, k=100_000)
    logs, of_base = [math.log(policy[t]) for t in tokens], [math.log(base[t]) for t in tokens]
    found = signals([said(*tokens, logprobs=logs, base=of_base)])
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in policy), abs=0.01)
    assert found.kl == pytest.approx(sum(p * math.log(p / b) for p, b in zip(policy, base, strict=True)), abs=0.005)


def test_a_single_unlikely_token_is_no_drift():
    # As a policy that is sure of itself draws it now and then: one of 350, which the base model thinks likely.
    own, of_base = [-0.01] * 349 + [-9.2], [-0.3] * 349 + [-0.3]
    found = signals([said(*range(350), logprobs=own, base=of_base)])
    assert found.kl == pytest.approx((349 * 0.29 - 8.9) / 350)
    assert signals([said(1, 2, logprobs=[-1.0, -1.0], base=[-0.9, -0.9])]).kl == 0, "chance alone"


@pytest.mark.parametrize(("own", "base"), [(math.nan, -1.0), (-1.0, math.nan), (-1.0, -math.inf)])
def test_what_is_not_finite_shows(own, base):
    found = signals([said(1, 2, logprobs=[own, -1.0], base=[base, -1.0])])
    assert not math.isfinite(found.kl)
    assert math.isnan(found.entropy) == math.isnan(own)


def test_log_probabilities_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="zip"):
        signals([said(1, 2, logprobs=[-1.0, -1.0], base=[-1.0])])
