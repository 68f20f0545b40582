"""The short form of `tests.faults.kills`."""

from __future__ import annotations

import random

from tests.faults.kills import Tally, one_run


def test_a_run_survives_being_killed_at_random_and_loses_nothing(tmp_path):
    tally = Tally()
    one_run(tmp_path, random.Random(3), tally, span=8.0, at_most=4)
    assert tally.kills + tally.sampler_kills + tally.suspensions > 0
    found = (
        tally.records_lost,
        tally.records_doubled,
        tally.damaged,
        tally.adapters_that_differ,
        tally.unexpected_ends,
    )
    assert found == (0, 0, 0, 0, 0)
