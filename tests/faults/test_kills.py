"""The short form of `tests.faults.kills`."""

from __future__ import annotations

import random

from tests.faults.kills import Tally, one_run
from tests.faults.stages import START

# About what stages take; the long form measures them.
SECONDS = {
    START: 2.0, "0 import": 1.0, "0 evaluate": 0.5, "1 rollouts": 0.5, "1 pairs": 0.1, "1 train": 3.0, "1 merge": 0.3,
    "1 evaluate": 0.5, "1 export": 0.3,
}  # fmt: skip


def test_a_run_survives_being_harmed_in_its_stages_and_loses_nothing(tmp_path):
    tally = Tally()
    one_run(tmp_path, random.Random(3), tally, SECONDS, each=1, refuse=True, at_most=6)
    assert tally.harmed >= 2
    assert len(tally.stages) >= 2
    assert tally.wrong == 0, tally
