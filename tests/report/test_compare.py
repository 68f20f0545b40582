from __future__ import annotations

import json

import pytest

from genius_lite.errors import UserError
from genius_lite.evaluate.results import GREEDY, Response
from genius_lite.report.compare import compare_runs
from genius_lite.rundir import write_records


def make_run(path, seed: int, scores: list[list[float]], loss: str = "aco"):
    """A run folder with one task; `scores` holds each round's sampled scores, a problem each."""
    path.mkdir()
    (path / "recipe.json").write_text(json.dumps({"seed": seed, "watched": f"2, 00{seed}f", "learner": {"loss": loss}}))
    for number, of_round in enumerate(scores):
        folder = path / f"round-{number}" / "evaluation"
        folder.mkdir(parents=True)
        rows = [
            Response("sums", f"p{n}", sample, "", 5, "end", score)
            for n, score in enumerate(of_round)
            for sample in (GREEDY, 0)
        ]
        write_records(folder / "responses.jsonl", rows)
    (path / "best.json").write_text(json.dumps({"round": 1, "stopped": None}))
    return path


def test_seeds_are_pooled_and_arms_set_beside_the_first(tmp_path):
    one = make_run(tmp_path / "aco-0", 0, [[0, 0, 1, 0], [1, 0, 1, 0]])
    two = make_run(tmp_path / "aco-1", 1, [[0, 0, 1, 0], [1, 1, 1, 0]])
    other = make_run(tmp_path / "random", 0, [[0, 0, 1, 0], [0, 0, 1, 0]], loss="dpo")
    aco, random = compare_runs([one, two, other])
    assert (aco.arm, aco.seeds, aco.round, aco.best) == ("aco-0", 2, 1, True)
    assert aco.sampled == pytest.approx((0.5 + 0.75) / 2)
    assert aco.sampled_gain and aco.sampled_gain.estimate == pytest.approx((0.25 + 0.5) / 2)
    assert aco.greedy_gain == aco.sampled_gain
    assert aco.seed_spread == pytest.approx(0.25 / 2**0.5)
    assert random.sampled_gain and random.sampled_gain.estimate == 0
    assert random.to_first and random.to_first.estimate == pytest.approx(-0.375)
    assert random.seed_spread is None


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        compare_runs([tmp_path])
    with pytest.raises(UserError, match="has measured no task"):
        compare_runs([make_run(tmp_path / "empty", 0, [])])
