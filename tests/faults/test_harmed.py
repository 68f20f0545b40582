"""The short form of `tests.faults.harmed`."""

from __future__ import annotations

import asyncio

import psutil

from tests.faults.harmed import harmed


def test_rollouts_are_the_same_whatever_is_done_to_the_worker():
    tally = asyncio.run(harmed(seconds=4, share=1.0, watchdog=10.0, seed=1))
    assert sum(tally.harms.values()) > 0
    assert tally.the_same == tally.rollouts > 0, tally
    assert psutil.Process().children() == []
