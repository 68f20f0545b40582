from __future__ import annotations

import msgspec
import pytest

from genius_lite.evaluate.best import Course, Standing, course, standing_score
from genius_lite.evaluate.results import TaskResult
from genius_lite.evaluate.signals import Signals
from genius_lite.evaluate.statistics import Interval
from genius_lite.recipe import Evaluate


def standings(*scores: float | None, halted: int | None = None) -> list[Standing]:
    return [Standing(n, score, n == halted) for n, score in enumerate(scores)]


def result(sampled: float | None, greedy: float | None) -> TaskResult:
    def interval(value):
        return None if value is None else Interval(value, value - 0.1, value + 0.1)

    return TaskResult("t", 10, 4, 0.0, 20.0, interval(greedy), interval(sampled))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.3,), 0),
        ((0.3, 0.4), 1),
        ((0.3, 0.2), 0),
        ((0.3, 0.3), 0),
        ((0.3, 0.4, 0.35), 1),
        ((0.3, 0.2, 0.5), 2),
        ((None, None, None), 2),
    ],
)
def test_the_best_round_has_the_highest_score_and_may_be_the_base(scores, best):
    assert course(Evaluate(), standings(*scores)).best == best


def test_a_worse_round_is_built_upon_only_without_rollback():
    worse = standings(0.3, 0.5, 0.4)
    assert course(Evaluate(rollback=True), worse) == Course(best=1, build_on=1)
    assert course(Evaluate(rollback=False), worse) == Course(best=1, build_on=2)
    assert course(Evaluate(rollback=True), standings(0.3, 0.2)).build_on == 0


def test_patience_ends_a_run_that_no_longer_improves():
    cfg = Evaluate(patience=2)
    assert course(cfg, standings(0.3, 0.5, 0.4)).stop is None
    assert course(cfg, standings(0.3, 0.5, 0.4, 0.45)).stop == "no better round in 2"
    assert course(cfg, standings(0.3, 0.5, 0.4, 0.6)).stop is None


def test_a_halted_round_ends_the_run_and_is_never_the_best():
    assert course(Evaluate(), standings(0.3, 0.9, halted=1)) == Course(
        0, 0, "the collapse guard halted round 1", halted=True
    )
    found = course(Evaluate(rollback=False), standings(None, None, None, halted=2))
    assert (found.best, found.build_on) == (1, 1)


def test_rounds_are_compared_by_tasks_before_signals():
    zero = Signals(**dict.fromkeys(Signals.__struct_fields__, 0.0))
    agreeing = msgspec.structs.replace(zero, agreement=0.8, parsed=0.9)
    assert standing_score([result(0.4, 0.6), result(0.2, 0.9)], agreeing) == pytest.approx(0.3)
    assert standing_score([result(None, 0.6)], None) == pytest.approx(0.6)
    assert standing_score([], agreeing) == pytest.approx(0.8)
    assert standing_score([], msgspec.structs.replace(agreeing, parsed=0.4)) is None
    assert standing_score([], None) is None
