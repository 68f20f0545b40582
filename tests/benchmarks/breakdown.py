"""Where a run's time goes, by stage: seconds and shares, from the timings in its folder.

    python -m tests.benchmarks.breakdown RUN
    python -m tests.benchmarks.breakdown RECIPE.yaml --out RUN [--set rounds=1 ...]

A recipe is run first, into a folder that must be new; its time is then that of the whole command. Of a finished run it
is from the moment when its folder was made to the summary, without the few seconds of its preparation; one that was
interrupted has no such time. The last line is JSON. `overhead` is what is neither sampling nor learning, nor asked for
by the recipe as a task: import, merge, quantize, check, and evaluation of held-out queries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from genius_lite.progress import Stage
from genius_lite.results.rounds import Timing
from genius_lite.rundir.folder import RECIPE, ROUNDED, SUMMARY
from genius_lite.rundir.reader import RoundFolder, RunFolder
from tests.benchmarks.machine import in_words, measured_on

NAMES = {
    Stage.IMPORT: "import",
    Stage.ROLLOUTS: "sampling",
    Stage.PAIRS: "pairs",
    Stage.TRAIN: "training",
    Stage.MERGE: "files",
    Stage.EVALUATE: "evaluation",
}
OVERHEAD = ("import", "files", "evaluation: held-out queries")


def seconds_by_part(run: RunFolder) -> dict[str, float]:
    """Seconds by stage, or by its parts where the run noted them, in the order of the stages."""
    found = defaultdict[str, float](float)
    for timing in _timings(run):
        name = NAMES[Stage(timing.stage)]
        rest = timing.seconds - sum(timing.parts.values())
        # Earlier versions did not tell tasks from held-out queries; where there is no task, all are the latter.
        only = ": held-out queries" if timing.stage == Stage.EVALUATE and not run.recipe["tasks"] else ""
        if not timing.parts or rest > 0.05:
            found[name + only] += rest
        for part, seconds in timing.parts.items():
            found[f"{name}: {part}"] += seconds
    order = [*NAMES.values()]
    return dict(sorted(found.items(), key=lambda one: order.index(one[0].partition(":")[0])))


def _timings(run: RunFolder) -> Iterable[Timing]:
    for here in (RoundFolder(0, run.path), run.own, RoundFolder(0, run.path / ROUNDED), *run.rounds):
        yield from here.timings


def whole_seconds(run: RunFolder) -> float:
    """From the folder's beginning to its summary, by the times of two files."""
    return (run.path / SUMMARY).stat().st_mtime - (run.path / RECIPE).stat().st_mtime


def shares(found: dict[str, float], whole: float) -> list[tuple[str, float, float]]:
    """(what, seconds, share of the whole), with what no stage noted at the end."""
    rest = whole - sum(found.values())
    return [(name, seconds, seconds / whole) for name, seconds in {**found, "all else": rest}.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or a recipe")
    parser.add_argument("--out", type=Path, help="of a recipe: the folder to run in")
    parser.add_argument("--set", action="append", default=[], help="of a recipe: a setting, such as rounds=1")
    asked = parser.parse_args()
    folder, whole = asked.run, None
    if folder.suffix in (".yaml", ".yml"):
        if not asked.out or asked.out.exists():
            parser.error("a recipe needs --out, a folder that is not there yet")
        settings = [word for setting in asked.set for word in ("--set", setting)]
        start = time.perf_counter()
        command = [sys.executable, "-m", "genius_lite", "run", str(folder), "--out", str(asked.out), *settings]
        subprocess.run(command, check=True, stdout=sys.stderr)
        folder, whole = asked.out, time.perf_counter() - start
    run = RunFolder(folder)
    found = seconds_by_part(run)
    whole = whole or whole_seconds(run)
    overhead = sum(seconds for name, seconds in found.items() if name.startswith(OVERHEAD))
    print(in_words(machine := measured_on()))
    print(f"{Path(run.source.path).name}, {run.searched} queries searched, {len(run.rounds)} rounds")
    print("\n| | seconds | share |\n|---|---|---|")
    for name, seconds, share in [*shares(found, whole), ("**whole**", whole, 1.0)]:
        print(f"| {name} | {seconds:.1f} | {share:.1%} |")
    figures = {"whole_s": whole, "overhead_s": overhead, "overhead": overhead / whole, "seconds": found}
    print(json.dumps({"machine": machine, **figures}))


if __name__ == "__main__":
    main()
