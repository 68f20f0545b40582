"""A clock that is set while a run goes on, as laptops do when they wake up."""

from __future__ import annotations

import subprocess
import sys

from tests.faults.kills import COMMAND, Tally, lay_out, look

JUMPING = """
import random, time
real, draw = time.time, random.Random(0)
time.time = lambda: real() + draw.choice([-86_400.0, 0.0, 86_400.0])
from genius_lite.cli import main
main()
"""


def test_a_run_does_not_go_by_the_clock(tmp_path):
    lay_out(tmp_path)
    jumping = [sys.executable, "-c", JUMPING, *COMMAND[3:]]
    subprocess.run(jumping, cwd=tmp_path, check=True, capture_output=True)
    tally = Tally()
    look(tmp_path, tally)
    assert tally == Tally()
    status = [sys.executable, "-c", JUMPING, "status", "run"]
    shown = subprocess.run(status, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "finished" in shown
