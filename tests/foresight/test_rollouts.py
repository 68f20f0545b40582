from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from genius_lite.errors import Stop
from genius_lite.foresight.rollouts import sample_rollouts, searches_in_flight
from genius_lite.recipe import Foresight
from genius_lite.records import Completion, Query, Rollout
from genius_lite.rundir.lines import RecordLog
from tests.support.scripted_sampler import ScriptedSampler

CFG = Foresight(beams=1, candidates=2, steps=3, max_tokens=50)
QUERIES = [Query(f"q{n}", f"question {n}", [n]) for n in range(5)]
SCRIPT = {
    ("step", ()): [Completion([5], [-0.1], "step"), Completion([5], [-0.1], "step")],
    ("end", (5,)): [Completion([7], [-0.3], "end")],
    ("step", (5,)): [Completion([6], [-0.2], "end"), Completion([8], [-0.9], "end")],
}


def _sample(folder: Path, in_flight: int, stop: Stop, asked_after: int) -> tuple[list[str], list[tuple[str, int]]]:
    """The queries in the log, and the steps that were told."""
    log, told = RecordLog(folder / "rollouts.jsonl", Rollout), []

    def finished(rollout: Rollout) -> None:
        log.append(rollout)
        if len(log.records) == asked_after:
            stop.asked = True

    def stepped(so_far: Rollout) -> None:
        told.append((so_far.query.id, len(so_far.steps)))

    def failed(query: Query, reason: str) -> None:
        raise AssertionError(reason)

    missing = [query for query in QUERIES if query.id not in {rollout.query.id for rollout in log.records}]
    sampler = ScriptedSampler(SCRIPT)
    asyncio.run(sample_rollouts(missing, sampler, CFG, (0, 1), in_flight, finished, failed, stepped, stop))
    log.close()
    return [rollout.query.id for rollout in log.records], told


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_asked_to_stop_it_finishes_what_is_under_way_and_begins_no_other(tmp_path, in_flight):
    done, told = _sample(tmp_path, in_flight, Stop(), asked_after=1)
    assert len(done) == in_flight
    assert sorted(told) == sorted((query, step) for query in done for step in (1, 2))
    rest, _ = _sample(tmp_path, in_flight, Stop(), asked_after=99)
    assert rest[: len(done)] == done
    assert sorted(rest) == [query.id for query in QUERIES]


def test_asked_before_it_began_it_does_nothing(tmp_path):
    assert _sample(tmp_path, 2, Stop(asked=True), asked_after=99) == ([], [])


def test_a_log_that_cannot_be_written_is_the_disks_own_error_and_other_faults_stay_a_group():
    def refused(error: Exception) -> None:
        def finished(rollout: Rollout) -> None:
            raise error

        failed = pytest.fail
        asyncio.run(sample_rollouts(QUERIES, ScriptedSampler(SCRIPT), CFG, (0, 1), 3, finished, failed))

    with pytest.raises(OSError, match="No space left"):
        refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ExceptionGroup):
        refused(ValueError("a fault"))


def test_of_many_questions_no_more_are_begun_than_are_under_way():
    many, tasks, done = [Query(f"q{n}", "question", [n]) for n in range(300)], [], []

    def finished(rollout: Rollout) -> None:
        done.append(rollout.query.id)
        tasks.append(len(asyncio.all_tasks()))

    def failed(query: Query, reason: str) -> None:
        raise AssertionError(reason)

    asyncio.run(sample_rollouts(many, ScriptedSampler(SCRIPT), CFG, (0, 1), 2, finished, failed))
    assert sorted(done) == sorted(query.id for query in many)
    assert max(tasks) < 20, "a task takes kilobytes"


def test_more_searches_are_under_way_than_slots_hold():
    assert searches_in_flight(32, CFG.model_copy(update={"candidates": 4})) == 16
    for one_step in (0, 1):  # what says the same shares a slot, and nothing is kept for a later step
        assert searches_in_flight(32, CFG.model_copy(update={"candidates": 4, "steps": one_step})) == 24
    assert searches_in_flight(1, CFG.model_copy(update={"candidates": 12})) == 1
