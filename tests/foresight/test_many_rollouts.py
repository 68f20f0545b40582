"""A round of many questions takes the memory of one of few: rollouts and pairs stay in their files."""

from __future__ import annotations

import argparse
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np

from genius_lite.evaluate.guard import round_metrics
from genius_lite.foresight.pairs import draw_pairs
from genius_lite.records import PreferencePair, Query, Rollout
from genius_lite.rundir.lines import Lines, write_records
from genius_lite.weights.retained import one_of_each
from tests.benchmarks.large_set import steps
from tests.support.models import ANY_PAIRS

SIZES = argparse.Namespace(step_tokens=25, future_tokens=60)


def peak(folder: Path, count: int) -> float:
    """Make the pairs of so many rollouts, and the round's figures; return the most that this has held, MB."""
    rng = np.random.default_rng(0)
    made = [steps(rng, SIZES) for _ in range(5)]
    queries = (Query(f"{number:016x}", "?", [*range(90)]) for number in range(count))
    write_records(folder / "rollouts", (Rollout(query, made[n % 5]) for n, query in enumerate(queries)))
    tracemalloc.start()
    rollouts = Lines(folder / "rollouts", Rollout)
    write_records(folder / "pairs", draw_pairs(rollouts, ANY_PAIRS, 0.1, (0, 1), lambda response: None, Counter()))
    pairs = Lines(folder / "pairs", PreferencePair)
    assert round_metrics(None, rollouts, pairs, 0.5, 0.0).pairs == len(pairs) == 4 * count
    assert len(one_of_each(pairs)) == 4
    held = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return held


def test_ten_times_the_rollouts_take_hardly_more_memory(tmp_path):
    peak(tmp_path, 4)  # what is made once
    assert peak(tmp_path, 200) - peak(tmp_path, 20) < 0.5, "the pairs alone are 2 MB in a list"
