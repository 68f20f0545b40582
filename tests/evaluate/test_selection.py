from __future__ import annotations

import msgspec
import numpy as np
import pytest

from genius_lite.evaluate.results import mean_score
from genius_lite.evaluate.selection import Decision, RoundScore, difference, judged_by, select_checkpoint
from genius_lite.evaluate.signals import Observed, signals
from genius_lite.evaluate.statistics import paired_difference
from genius_lite.recipe import Evaluate
from genius_lite.results.evaluation import Scores

PROBLEMS = 60


def scored(share: float, task: str = "t") -> Scores:
    """So many of 60 problems right, always the first ones."""
    return {task: {f"p{n}": float(n < share * PROBLEMS) for n in range(PROBLEMS)}}


def decided(cfg: Evaluate, *shares: float, halted: int | None = None) -> Decision:
    return select_checkpoint(
        cfg, len(shares), [RoundScore(n, scored(share), n == halted) for n, share in enumerate(shares)]
    )


@pytest.mark.parametrize(
    ("shares", "best"),
    [
        ((0.3,), 0),
        ((0.3, 0.6), 1),
        ((0.3, 0.0), 0),  # surely worse
        ((0.3, 0.28), 1),  # by one problem: not told apart, so the later one goes on
        ((0.3, 0.6, 0.58), 2),
        ((0.3, 0.6, 0.3), 1),
        ((0.3, 0.6, 0.1, 0.55), 3),
        ((0.5, 0.4, 0.3, 0.2), 1),  # each hardly worse than the one before, but the second surely than the base
    ],
)
def test_the_best_round_is_the_latest_that_is_not_surely_worse(shares, best):
    assert decided(Evaluate(), *shares).best == best


def test_a_worse_round_is_built_upon_only_without_rollback():
    assert decided(Evaluate(rollback=True), 0.3, 0.6, 0.2) == Decision(best=1, build_on=1)
    assert decided(Evaluate(rollback=False), 0.3, 0.6, 0.2) == Decision(best=1, build_on=2)


def test_patience_counts_rounds_with_evidence_against_them():
    cfg = Evaluate(patience=2)
    assert decided(cfg, 0.3, 0.6, 0.2).stop is None
    assert decided(cfg, 0.3, 0.6, 0.2, 0.1).stop == "2 rounds in a row are worse than round 1"
    assert decided(cfg, 0.3, 0.6, 0.2, 0.6).stop is None
    assert decided(cfg, 0.3, 0.6, 0.58, 0.6, 0.58).stop is None, "rounds that are not told apart are none against"
    assert decided(Evaluate(patience=1), 0.6, 0.2).stop == "round 1 is worse than the base model"


def test_a_halted_round_ends_the_run_and_is_never_the_best():
    assert decided(Evaluate(), 0.3, 0.9, halted=1) == Decision(0, 0, "the collapse guard halted round 1", halted=True)
    unjudged = [RoundScore(n, {}, n == 2) for n in range(3)]
    assert select_checkpoint(Evaluate(rollback=False), 2, unjudged) == Decision(
        1, 1, "the collapse guard halted round 2", True
    )


def test_where_nothing_can_judge_the_latest_round_goes_on():
    assert select_checkpoint(Evaluate(), 2, [RoundScore(n, {}) for n in range(3)]) == Decision(2, 2)


def test_a_round_that_cannot_be_compared_is_never_the_best_and_no_evidence_either_way():
    """llama.cpp survived none of its problems, for instance."""
    good, bad, blank = scored(0.6), scored(0.1), {}
    assert select_checkpoint(Evaluate(), 1, [RoundScore(0, good), RoundScore(1, blank)]).best == 0
    measured = [RoundScore(n, of) for n, of in enumerate((good, bad, blank, bad))]
    assert (
        select_checkpoint(Evaluate(patience=2), 3, measured).stop == "2 rounds in a row are worse than the base model"
    )


def test_rounds_are_compared_by_tasks_before_signals():
    def said(query: str, answer: str | None) -> Observed:
        return Observed(query, [1, 2], [-1.0, -1.0], [], "end", answer)

    agreeing = signals([said("q", "4"), said("q", "4"), said("r", "4"), said("r", "5")])
    assert judged_by(scored(0.5), agreeing, agreeing) == scored(0.5)
    assert judged_by({}, agreeing, agreeing) == {"held-out queries": {"q": 1.0, "r": 0.0}}
    assert mean_score(judged_by({}, agreeing, agreeing)) == 0.5
    vague = msgspec.structs.replace(agreeing, parsed=0.4)
    assert judged_by({}, agreeing, vague) == {}, "the base model seldom states an answer"
    assert judged_by({}, vague, agreeing) != {}, "a round that no longer does is compared all the same"
    assert judged_by({}, None, agreeing) == {} and mean_score({}) is None


def test_tasks_count_alike_and_problems_that_only_one_has_are_left_out():
    before = {"a": {"1": 0.0, "2": 0.0}, "b": {"1": 0.5}}
    after = {"a": {"1": 1.0, "2": 0.5, "3": 1.0}, "b": {"1": 0.5, "9": 0.0}}
    found = difference(before, after, 0.95)
    assert found and found.estimate == pytest.approx((0.75 + 0.0) / 2)
    assert difference(before, {"c": {"1": 1.0}}, 0.95) is None


def judged(accuracy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a policy that solves each problem with this chance scores: the mean of a greedy response and four others."""
    return (rng.binomial(1, accuracy) + rng.binomial(4, accuracy) / 4) / 2


@pytest.mark.parametrize("rounds", [1, 3, 5])
@pytest.mark.parametrize(("problems", "choosing"), [(80, 40), (30, 0)])
def test_a_policy_that_did_not_change_is_seldom_rolled_back_and_seldom_called_better(problems, choosing, rounds):
    """Of 1000 runs: rolled back in at most 5 %, called better in at most 2.5 %, each with two errors of chance.

    The first problems choose and the others report; where none does, all do both, and gains are corrected (`results`).
    """
    rng, runs, rolled_back, better = np.random.default_rng(0), 1000, 0, 0
    for _ in range(runs):
        accuracy = rng.beta(0.8, 1.6, problems)
        scores = [judged(accuracy, rng) for _ in range(rounds + 1)]
        chosen_on = [of[: choosing or problems] for of in scores]
        standings = [RoundScore(n, {"t": {str(p): x for p, x in enumerate(of)}}) for n, of in enumerate(chosen_on)]
        best = select_checkpoint(Evaluate(), rounds, standings).best
        rolled_back += best != rounds
        before, after = (scores[n][choosing:] for n in (0, best))
        told = paired_difference(before, after, 0.95 if choosing else 1 - 0.05 / rounds)
        better += best > 0 and told.low > 0
    assert rolled_back / runs <= 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5
    assert better / runs <= 0.025 + 2 * (0.025 * 0.975 / runs) ** 0.5


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_agreement_on_a_few_queries_does_not_decide_by_chance(rounds):
    """16 queries, four responses each, from a policy that did not change (correctness review, B7)."""
    rng, runs, rolled_back = np.random.default_rng(1), 1000, 0
    for _ in range(runs):
        shares = rng.dirichlet(np.full(6, 0.5), 16)
        standings = []
        for number in range(rounds + 1):
            drawn = [np.bincount(rng.choice(6, 4, p=of), minlength=6).max() / 4 for of in shares]
            standings.append(RoundScore(number, {"q": {str(n): value for n, value in enumerate(drawn)}}))
        rolled_back += select_checkpoint(Evaluate(), rounds, standings).best != rounds
    assert rolled_back / runs <= 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


def test_a_policy_that_fell_by_a_third_is_rolled_back():
    rng, runs = np.random.default_rng(2), 200
    accuracy = rng.beta(2.0, 2.0, 80)
    found = 0
    for _ in range(runs):
        after = {"t": {str(n): value for n, value in enumerate(judged(accuracy * 0.6, rng))}}
        before = {"t": {str(n): value for n, value in enumerate(judged(accuracy, rng))}}
        found += select_checkpoint(Evaluate(), 1, [RoundScore(0, before), RoundScore(1, after)]).best == 0
    assert found / runs > 0.9
