from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from genius_lite.evaluate.guard import guard_status
from genius_lite.recipe import Guard, Limit
from genius_lite.records import Candidate, Completion, Query, Rollout, Step
from genius_lite.report import state as board_module
from genius_lite.report.columns import COLUMNS, SHORT, values
from genius_lite.report.state import Histogram, Meter, RunState, Work, glimpse
from genius_lite.results.rounds import RoundReport
from tests.support.reports import REPORT, SIGNALS


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_histogram_counts_in_hundredths_and_is_drawn_at_any_width():
    values = Histogram()
    values.add([-0.504, -0.5, -0.496, -0.49, -0.02, -0.01, math.nan, -math.inf])
    assert values.bins == {-50: 3, -49: 1, -2: 1, -1: 1}
    assert values.count == 6
    assert values.mean == pytest.approx((-0.5 * 3 - 0.49 - 0.02 - 0.01) / 6)
    assert values.columns(2) == (-0.5, -0.01, [4, 2])
    low, high, counts = values.columns(1000)
    assert (low, high, len(counts), sum(counts)) == (-0.5, -0.01, 50, 6)
    assert (counts[0], counts[1], counts[-1]) == (3, 1, 1)


def test_one_value_is_one_column():
    values = Histogram()
    values.add([0.0])
    assert values.columns(40) == (0.0, 0.0, [1])


def test_a_rate_goes_by_what_was_done_here_and_lately():
    clock = Clock()
    meter = Meter("round 1: rollouts", "queries", 110, done=10, clock=clock)
    assert (meter.read().rate, meter.read().left, meter.read().done) == (None, None, 10)
    for _ in range(100):
        clock.now += 2
        meter.advance(0.5)
    work = meter.read()
    assert (work.done, work.rate) == (60, pytest.approx(0.25))
    assert work.left == pytest.approx(50 / 0.25)
    clock.now += 3  # the time since is already part of what is left
    assert meter.read().left == pytest.approx(50 / 0.25 - 3)
    clock.now += 117  # but nothing for two minutes, after as long at the old rate (59 gaps of two seconds), is slower
    slower = (59 * 0.5) / (59 * 2 + 120)
    assert (meter.read().rate, meter.read().left) == (pytest.approx(slower), pytest.approx(50 / slower))
    for _ in range(60):  # four times as fast: the last sixty marks are all that counts
        clock.now += 1
        meter.advance(0.5)
    assert meter.read().rate == pytest.approx(0.5, rel=0.03)


def test_no_forecast_rests_on_the_first_few_and_none_is_made_when_all_is_done():
    clock = Clock()
    meter = Meter("x", "pairs", 100, clock=clock)
    clock.now = 10
    meter.advance(4)
    assert (meter.read().rate, meter.read().left) == (0.4, None)
    clock.now = 12.5
    meter.advance(1)
    assert meter.read().left == pytest.approx(95 / 0.4)
    clock.now = 15.5
    assert meter.read().left == pytest.approx(95 / 0.4 - 3)
    meter.advance(95)
    assert meter.read().left is None


def test_what_is_under_way_at_once_is_half_done():
    """Without that the first forecasts of answers were two to three times too long."""
    clock = Clock()
    meter = Meter("round 1: tasks", "responses", 320, at_once=32, clock=clock)
    for _ in range(32):  # a second each at the rate at which it will go on: one of them ends, another begins
        clock.now += 1
        meter.advance(0.5)
    assert (meter.read().done, meter.read().rate) == (16, pytest.approx(1))
    assert meter.read().left == pytest.approx(320 - 32)
    for _ in range(300):
        clock.now += 1
        meter.advance(1)
    work = meter.read()
    assert (work.done, work.rate) == (316, pytest.approx(1))
    assert work.left == pytest.approx(2), "of the last four half is done"


def test_the_end_of_a_run_is_forecast_when_every_stage_was_measured(monkeypatch):
    monkeypatch.setattr(board_module.time, "time", lambda: 100.0)
    seconds = {"rollouts": 60.0, "pairs": 0.0, "train": 20.0, "merge": 10.0, "evaluate": 5.0}
    run = RunState(rounds=3)
    run.enter(2, "train")
    run.entered = 92.0
    assert run.left(seconds) == pytest.approx((20 - 8) + 10 + 5 + 95)
    del seconds["merge"]
    assert run.left(seconds) is None
    run.enter(3, "evaluate")
    run.entered = 99.0
    assert run.left(seconds) == pytest.approx(4)
    assert run.left({}) is None


def test_a_forecast_stands_in_for_what_was_not_measured(monkeypatch):
    monkeypatch.setattr(board_module.time, "time", lambda: 100.0)
    run = RunState(rounds=1, forecast={"rollouts": 60.0, "pairs": 0.0, "train": 20.0, "merge": 10.0, "evaluate": 5.0})
    run.enter(0, "evaluate")
    assert run.left({}) is None  # of the base model; how long that takes its own rate will say
    run.work = Work("base model", "problems", 10, 5, 1.0, 4.0)
    assert run.left({}) == pytest.approx(4 + 95)
    run.enter(1, "rollouts")
    run.entered = 90.0
    assert run.left({}) == pytest.approx(50 + 35)
    run.work = Work("rollouts", "queries", 10, 5, 1.0, 30.0)
    assert run.left({}) == pytest.approx(30 + 35)  # its own rate knows better
    assert run.left({"evaluate": 8.0}) == pytest.approx(30 + 38)


def test_another_round_begins_with_no_value():
    run = RunState(rounds=2)
    run.enter(1, "rollouts")
    run.values.add([-1.0])
    run.enter(1, "train")
    assert run.values.count == 1
    assert run.stages == ("rollouts", "pairs", "train", "merge", "evaluate")
    run.enter(2, "rollouts")
    assert run.values.count == 0
    assert run.stages[-1] == "export"


def _candidate(beam: int, token: int, value: float) -> Candidate:
    return Candidate(beam, Completion([token], [-0.1], "step"), None, value, 0.0)


def test_a_rollout_is_shown_along_its_best_beam():
    first = Step(0, [_candidate(0, 10, -0.9), _candidate(0, 11, -0.4), _candidate(0, 12, -0.5)], [2, 0])
    second = Step(1, [_candidate(0, 20, -0.8), _candidate(1, 21, -0.3)], [0, 1])
    query = Query("q", "which?", [1])
    decode = "{0[0]}".format
    assert glimpse(Rollout(query, [first]), decode).steps == [(-0.5, "12")]
    shown = glimpse(Rollout(query, [first, second]), decode)
    assert (shown.prompt, shown.steps) == ("which?", [(-0.9, "10"), (-0.3, "21")])
    assert second.values == [-0.8, -0.3]
    assert Step(0, [_candidate(0, 1, -1.0)], [0], foreseen=False).values == []


def test_lights_are_of_the_signals_that_are_watched():
    lights = guard_status(Guard(loops=Limit()), REPORT, SIGNALS)
    assert (lights["kl"], lights["margin"], lights["entropy"]) == ("halt", "warn", "ok")
    assert "loops" not in lights
    unwatched = guard_status(
        Guard(), replace(REPORT, metrics=replace(REPORT.metrics, signals=None), alarms=[]), SIGNALS
    )
    assert set(unwatched) == {"value", "spread", "length_gap", "accuracy", "margin"}


def test_every_column_has_a_figure_of_a_finished_round_and_none_of_one_that_did_not_come_so_far():
    found = values(REPORT)
    assert [found[key] for key in ("score", "sampled_tokens", "tokens_per_s", "type", "kept", "alarms")] == [
        0.6, 1000, None, "Q4_0", 0.8, 2,
    ]  # fmt: skip
    assert {key for key, value in found.items() if value is None} == {"tokens_per_s", "sampled_from"}
    assert set(values(RoundReport(1)).values()) == {None}
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)
    assert [column.plain(column.value(REPORT)) for column in SHORT] == [
        "60.0%", "1,000", "", "-0.500", "30", "0.6000", "+3.00", "Q4_0", "80%",
    ]  # fmt: skip
