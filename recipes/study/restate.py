"""The intervals of RESULTS.md over seeds and problems, from what is kept of runs that are older than they are.

    python recipes/study/restate.py

Of Qwen every answer is kept, so they are what `compare` would print. Of SmolLM2 only intervals over problems and the
gains of the seeds are: `with_seeds` puts these together, and as the chance in single answers cannot be taken out, the
result is somewhat wider than that of `compare`. What single seeds of the random pairs gained at temperature 1 is not
kept, but their spread; set beside `smollm2-reasoning` their seeds count as independent. A line for each row, in points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from genius_lite.evaluate.statistics import mean_of, pooled_difference, with_seeds
from genius_lite.report.summary import points
from genius_lite.results.evaluation import Interval

RESULTS = Path(__file__).parent / "results"
TASKS = ("chain_sum", "products", "letter_counting")

Line = tuple[str, str, Interval]
"""The row, its column, and what stands there, as shares."""


def main() -> None:
    for row, column, interval in [*qwen(), *qwen_first_160(), *smollm2(), *smollm2_at_half_temperature()]:
        print(f"{row} | {column} | {points(interval).removesuffix(' points')}")


def qwen() -> Iterator[Line]:
    """GSM8K on all 500 problems, a greedy and a sampled answer to each."""
    runs = _read("qwen-gsm8k-500.json")["runs"]

    def right(run: str, which: str, kind: str) -> list[int]:
        """Of `which`, the base or a round, 1 or 0 for each problem; a base may be "that of RUN"."""
        found = runs[run][which]
        return (
            right(found.split()[-1], which, kind) if isinstance(found, str) else [int(digit) for digit in found[kind]]
        )

    groups = {
        "lr 5e-5, 108 questions": ["more-0", "more-1", "more-2"],
        "the same, random pairs": ["random-more-0", "random-more-1"],
        "lr 5e-5": ["half-0", "half-ratio2-1"],
        "lr 1e-4, length ratio at most 2": ["ratio2-0", "ratio2-1", "ratio2-2"],
        "lr 1e-4, log-probabilities per token": ["per-token-0", "per-token-1"],
    }
    for kind in ("sampled", "greedy"):
        tuned = {name: [right(run, "round 1", kind) for run in of_seeds] for name, of_seeds in groups.items()}
        for name, of_seeds in groups.items():
            base = [right(run, "base", kind) for run in of_seeds]
            yield f"Qwen, {name}", kind, pooled_difference([base], [tuned[name]])
        by_value, random, *_ = tuned.values()
        yield "Qwen, ahead of random pairs", kind, pooled_difference([random], [by_value], paired=False)


def qwen_first_160() -> Iterator[Line]:
    """GSM8K on 160 problems at lr 1e-4: of each problem three digits, the greedy answer and two sampled ones."""
    runs = [_read("qwen-gsm8k.json")["runs"][f"qwen-gsm8k-{seed}"] for seed in (0, 1)]
    base, tuned = (np.array([[[*map(int, p)] for p in run[key]] for run in runs]) for key in ("base", "round"))
    for kind, samples in (("sampled", slice(1, None)), ("greedy", slice(1))):
        found = pooled_difference([base[..., samples].mean(axis=2)], [tuned[..., samples].mean(axis=2)])
        yield "Qwen, the first 160 of them", kind, found


def smollm2() -> Iterator[Line]:
    """At temperature 1. `compare` printed the spread of the seeds beside its intervals over problems."""
    by_seed = _read("smollm2-pooled.json")["gains of each seed at temperature 1"]
    rows = {(row["arm"], row["task"].split(":")[1]): row for row in _read("smollm2.json") if row["seeds"] > 1}
    for (arm, task), row in rows.items():
        seeds, spread = row["seeds"], row["seed_spread"]
        yield f"SmolLM2, {arm}", task, with_seeds(_interval(row["sampled_gain"]), spread / seeds**0.5, seeds - 1)
        if arm == "random-0":
            pooled = ((spread**2 + rows["aco-0", task]["seed_spread"] ** 2) / seeds) ** 0.5
            yield "SmolLM2, random to aco", task, with_seeds(_interval(row["to_first"]), pooled, 2 * seeds - 2)
    for arm, of_tasks in by_seed.items():
        over_problems = mean_of([_interval(rows[arm, task]["sampled_gain"]) for task in TASKS])
        gains = [fmean(of_seed) / 100 for of_seed in zip(*of_tasks.values(), strict=True)]
        yield f"SmolLM2, {arm}", "mean", _over_seeds(over_problems, gains)


def smollm2_at_half_temperature() -> Iterator[Line]:
    kept = _read("at-half-temperature.json")["smollm2"]
    over_problems = _read("smollm2-pooled.json")["gains of three seeds at temperature 0.5, over problems"]

    def gains(arm: str, column: str) -> list[float]:
        """Of each seed; `ARM to OTHER` is what it is ahead of the other one."""
        arm, _, other = arm.partition(" to ")
        found = [fmean(kept[f"{arm}-{n}"][t]["gain"][0] for t in TASKS if column in (t, "mean")) for n in range(3)]
        return [a - b for a, b in zip(found, gains(other, column), strict=True)] if other else found

    for arm, columns in over_problems.items():
        for column, in_points in columns.items():
            estimate, low, high = (figure / 100 for figure in in_points)
            yield f"SmolLM2 at 0.5, {arm}", column, _over_seeds(Interval(estimate, low, high), gains(arm, column))


def _over_seeds(over_problems: Interval, gains: Sequence[float]) -> Interval:
    return with_seeds(over_problems, stdev(gains) / len(gains) ** 0.5, len(gains) - 1)


def _interval(found: dict[str, float]) -> Interval:
    return Interval(found["estimate"], found["low"], found["high"])


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
