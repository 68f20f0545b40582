"""A clock that is set while a run goes on, as laptops do when they wake up."""

from __future__ import annotations

from tests.faults.kills import Tally, lay_out, look
from tests.support.cli import genius

JUMPING = """
import random, time
real, draw = time.time, random.Random(0)
time.time = lambda: real() + draw.choice([-86_400.0, 0.0, 86_400.0])
"""


def test_a_run_does_not_go_by_the_clock(tmp_path):
    lay_out(tmp_path)
    genius("run", "r.yaml", "--out", "run", cwd=tmp_path, before=JUMPING).check_returncode()
    tally = Tally()
    look(tmp_path, tally)
    assert tally == Tally()
    assert "finished" in genius("status", "run", cwd=tmp_path, before=JUMPING).stdout
