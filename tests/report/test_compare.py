from __future__ import annotations

import io
import json

import msgspec
import numpy as np
import pytest
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.evaluate.statistics import pooled_difference
from genius_lite.report.compare import ALL_TASKS, compare_runs, print_comparison
from genius_lite.results.evaluation import GREEDY, Response
from genius_lite.rundir.lines import read_records, write_records

Measured = dict[str, list[float]]
"""Task -> a score for each of its problems."""


def make_run(path, seed: int, rounds: list[Measured], loss: str = "aco"):
    """A run folder; each round's greedy and sampled responses have the same scores. The best round is 1."""
    path.mkdir()
    (path / "recipe.json").write_text(json.dumps({"seed": seed, "watched": f"2, 00{seed}f", "learner": {"loss": loss}}))
    for number, of_round in enumerate(rounds):
        folder = path / f"round-{number}" / "evaluation"
        folder.mkdir(parents=True)
        rows = [
            Response(task, f"p{n}", sample, "", 5, "end", float(score))
            for task, scores in of_round.items()
            for n, score in enumerate(scores)
            for sample in (GREEDY, 0)
        ]
        write_records(folder / "responses.jsonl", rows)
    (path / "best.json").write_text(json.dumps({"round": 1, "stopped": None}))
    return path


def sums(*scores: float) -> Measured:
    return {"sums": list(scores)}


def printed(rows) -> str:
    out = io.StringIO()
    print_comparison(rows, Console(file=out, width=80, color_system=None))
    return out.getvalue()


def test_seeds_are_pooled_and_arms_set_beside_the_first(tmp_path):
    one = make_run(tmp_path / "aco-0", 0, [sums(0, 0, 1, 0), sums(1, 0, 1, 0)])
    two = make_run(tmp_path / "aco-1", 1, [sums(0, 0, 1, 0), sums(1, 1, 1, 0)])
    other = make_run(tmp_path / "random", 0, [sums(0, 0, 1, 0), sums(0, 0, 1, 0)], loss="dpo")
    aco, random = compare_runs([one, two, other])
    assert (aco.arm, aco.seeds, aco.round, aco.best) == ("aco-0", 2, 1, True)
    assert aco.sampled == pytest.approx((0.5 + 0.75) / 2)
    assert aco.sampled_gain and aco.sampled_gain.estimate == pytest.approx((0.25 + 0.5) / 2)
    assert aco.greedy_gain == aco.sampled_gain
    assert aco.seed_spread == pytest.approx(0.25 / 2**0.5)
    assert aco.sampled_gain.over_seeds == pytest.approx(0.25 / 2)
    assert random.sampled_gain and random.sampled_gain.estimate == 0
    assert random.to_first and random.to_first.estimate == pytest.approx(-0.375)
    assert random.seed_spread is None
    assert random.sampled_gain.over_seeds is None
    assert random.to_first.over_seeds is not None, "the first arm's seeds are drawn, too"
    assert (aco.greedy, random.greedy, random.greedy_to_first) == (aco.sampled, random.sampled, random.to_first)
    assert (aco.to_first, aco.greedy_to_first) == (None, None)


def test_seeds_that_began_on_other_days_are_one_arm(tmp_path):
    """A template that asks for the date puts it into the run's identity."""
    runs = [make_run(tmp_path / f"run-{seed}", seed, [sums(0, 1), sums(1, 1)]) for seed in (0, 1, 2)]
    for run, template in zip(runs, ({"today": "2026-11-01"}, {"today": "2026-11-02"}, {"thinks": True}), strict=True):
        recipe = json.loads((run / "recipe.json").read_text())
        (run / "recipe.json").write_text(json.dumps({**recipe, "template": template}))
    assert [(row.arm, row.seeds) for row in compare_runs(runs)] == [("run-0", 2), ("run-2", 1)]


def test_a_run_given_twice_or_its_copy_is_no_second_seed(tmp_path):
    rounds = [sums(0, 0, 1, 0), sums(1, 0, 1, 0)]
    one, two = make_run(tmp_path / "a", 0, rounds), make_run(tmp_path / "b", 1, rounds)
    copied = make_run(tmp_path / "copy", 0, rounds)
    (alone,) = compare_runs([one])
    first, again = compare_runs([one, one])
    assert first == alone
    assert (again.seeds, again.to_first.estimate, again.sampled_gain) == (1, 0, alone.sampled_gain)
    assert [(row.arm, row.seeds) for row in compare_runs([one, copied, two])] == [("a", 2), ("copy", 1)]


def test_arms_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "short").mkdir()
    rounds = [sums(0, 0, 1, 0), sums(1, 0, 1, 0)]
    runs = [make_run(tmp_path / "short" / "run", 0, rounds), make_run(tmp_path / "run", 0, rounds, loss="dpo")]
    assert [row.arm for row in compare_runs(runs)] == [str(run) for run in runs]


def test_arms_of_the_same_seeds_are_paired_by_seed_in_whatever_order_they_are_named(tmp_path):
    rng = np.random.default_rng(0)
    base = sums(*[0.0] * 30)
    right = (rng.random((2, 3, 30)) < [[[0.2], [0.4], [0.6]], [[0.3], [0.5], [0.7]]]).astype(float)
    runs = [
        make_run(tmp_path / f"{loss}-{seed}", seed, [base, sums(*scores)], loss)
        for loss, of_seeds in zip(("aco", "dpo"), right, strict=True)
        for seed, scores in enumerate(of_seeds)
    ]
    _, paired = compare_runs([*runs[:3], *reversed(runs[3:])])
    _, independent = compare_runs([*runs[:3], *runs[4:]])
    assert paired.to_first == pooled_difference(right[:1], right[1:])
    assert independent.to_first == pooled_difference(right[:1], right[1:, 1:], paired=False)


def test_the_mean_of_all_tasks_weighs_them_alike(tmp_path):
    before, after = {"sums": [0, 0, 0, 0], "words": [1, 0]}, {"sums": [1, 0, 0, 0], "words": [1, 1]}
    run = make_run(tmp_path / "run", 0, [before, after])
    one_task = make_run(tmp_path / "sums", 0, [sums(0, 0, 0, 0), sums(1, 1, 0, 0)], loss="dpo")
    rows = compare_runs([run, one_task])
    assert [(row.task, row.arm) for row in rows] == [
        ("sums", "run"),
        ("words", "run"),
        (ALL_TASKS, "run"),
        ("sums", "sums"),
    ]
    mean = rows[2]
    assert mean.sampled == pytest.approx((1 / 4 + 1) / 2)
    assert mean.sampled_gain and mean.sampled_gain.estimate == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert rows[3].to_first and rows[3].to_first.estimate == pytest.approx(1 / 4)
    assert printed(rows).index("words") < printed(rows).index(ALL_TASKS)


def test_both_parts_of_the_error_are_shown_and_fit_into_80_columns(tmp_path):
    rng = np.random.default_rng(1)
    losses = ("aco", "aco", "dpo")
    runs = [
        make_run(tmp_path / f"a-long-name-{n}", n, [sums(*[1.0] * 25), sums(*rng.integers(0, 2, 25))], loss)
        for n, loss in enumerate(losses)
    ]
    rows = compare_runs(runs)
    text = printed(rows)
    assert max(map(len, text.splitlines())) <= 80
    first, second = rows
    for row in rows:
        assert row.sampled_gain
        for end in (row.sampled_gain.low, row.sampled_gain.high):
            assert f"{100 * end:+.1f}" in text
    assert first.sampled_gain and first.sampled_gain.over_seeds
    assert f"problems {100 * first.sampled_gain.over_problems:.1f}" in text
    assert f" seeds {100 * first.sampled_gain.over_seeds:.1f}" in text
    assert "over problems" not in printed([first]).split("Gains")[0]
    assert [line.split()[0] for line in text.splitlines() if " greedy " in line] == ["greedy"] * 2, "named once"
    only_greedy = printed([msgspec.structs.replace(first, sampled=None, sampled_gain=None, to_first=None)])
    assert "sampled" not in only_greedy
    assert "a-long-name-0" in only_greedy
    assert "over problems" in printed([second]).split("Gains")[0]
    as_json = msgspec.to_builtins(rows)
    assert set(as_json[0]["sampled_gain"]) == {"estimate", "low", "high", "over_problems", "over_seeds"}


def test_a_run_without_a_measured_round_is_named_and_not_left_out(tmp_path):
    done = make_run(tmp_path / "a", 0, [sums(0, 1), sums(1, 1)])
    for name, seed, loss, rounds in (("b", 1, "aco", [sums(0, 1)]), ("c", 0, "dpo", []), ("d", 2, "dpo", [sums(0, 1)])):
        other = make_run(tmp_path / name, seed, rounds, loss)
        with pytest.raises(UserError, match=f"{name}: no round of it is measured yet"):
            compare_runs([done, other])


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        compare_runs([tmp_path])
    with pytest.raises(UserError, match="has measured no task"):
        compare_runs([make_run(tmp_path / "empty", 0, [{}, {}])])


def test_problems_that_only_choose_are_not_compared(tmp_path):
    run = tmp_path / "a"
    make_run(run, 0, [{"sums": [0, 1, 0]}, {"sums": [1, 1, 0]}])
    for number in (0, 1):
        file = run / f"round-{number}" / "evaluation" / "responses.jsonl"
        rows = read_records(file, Response)
        write_records(file, [*rows, *(msgspec.structs.replace(r, task="chooses", use="choose") for r in rows)])
    assert [row.task for row in compare_runs([run])] == ["sums"]


def test_only_the_first_run_is_the_first(tmp_path):
    """A round that it has not is set beside no other run."""
    short = make_run(tmp_path / "short", 0, [sums(0, 0, 1, 0), sums(1, 0, 1, 0)])
    worse, better = (
        make_run(tmp_path / name, 0, [sums(0, 0, 1, 0), sums(*after), sums(*after)], loss=name)
        for name, after in (("dpo", (0, 0, 0, 0)), ("ipo", (1, 1, 1, 1)))
    )
    found = {(row.arm, row.round): row for row in compare_runs([short, worse, better])}
    told = found["ipo", 1].to_first
    assert told and told.estimate == 0.5
    assert found["ipo", 2].to_first is None
    rounds = [line.split() for line in printed([*found.values()]).splitlines() if " sampled " in line]
    assert [line[-1] for line in rounds if line[0] == "short" or line[1] == "2"] == ["-", "-", "-"], "and that is said"
    assert found["short", 1].to_first is None
