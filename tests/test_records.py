from __future__ import annotations

import os
import subprocess
import sys

from genius_lite.records import Candidate, Completion, Query, Rollout, Step, query_id, seed_of

STEP = Completion([5, 6], [-0.5, -1.5], "step")
END = Completion([7], [-2.0], "end")


def test_query_id_is_the_start_of_the_prompts_sha256():
    assert query_id("hello") == "2cf24dba5fb0a30e"


def test_seeds_depend_on_every_part():
    assert seed_of(0, 1, "q", 2) == seed_of(0, 1, "q", 2)
    assert len({seed_of(0, 1, "q"), seed_of(1, 1, "q"), seed_of(0, 2, "q"), seed_of(0, 1, "r"), seed_of(0, 1)}) == 5


def test_responses_are_read_back_through_the_kept_beams():
    other = Candidate(0, Completion([9], [-1.0], "step"), END, -1.0, -1.0)
    first = Step(0, [Candidate(0, STEP, END, -2.0, -2.0), other], [1])
    second = Step(1, [Candidate(0, END, None, -2.0, -1.0, times=4)], [0])
    rollout = Rollout(Query("id", "x", [1]), [first, second])
    assert rollout.response(0, 0) == [5, 6, 7]
    assert rollout.response(1, 0) == [9, 7]
    assert (first.repeats, second.repeats) == (0, 3)
    assert rollout.sampled_tokens == 3 + 2 + 4
    assert STEP.mean_logprob == -1.0


def test_seeds_are_the_same_in_every_process():
    code = "from genius_lite.records import seed_of; print(seed_of(0, 1, 'q', 2))"
    for salt in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": salt}
        shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert int(shown.stdout) == seed_of(0, 1, "q", 2)
