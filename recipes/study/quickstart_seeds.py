"""The quickstart from several seeds: other questions, other problems and another run each time.

    python recipes/study/quickstart_seeds.py runs/seeds --seeds 10
    python recipes/study/quickstart_seeds.py runs/random --name random --set pairs.choose=random --reuse runs/seeds

Each seed has a folder: its files (`quickstart.py`), the recipe and the run, which the same command goes on with. Writes
`results/quickstart-NAME.json`, and prints the table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from genius_lite.cli.runs import HALTED
from genius_lite.report.summary import points
from genius_lite.results.evaluation import Interval
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import percent

RECIPES = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
KINDS = ("sampled", "greedy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", type=int, nargs="+", help="run these, and write no results")
    parser.add_argument("--name", default="seeds", help="of the results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="what a control replaces")
    parser.add_argument("--reuse", type=Path, help="another folder, whose rollouts are taken where they are the same")
    a = parser.parse_args()
    for seed in a.only or range(a.seeds):
        run(a.folder / f"seed-{seed}", seed, a.set, a.reuse and a.reuse / f"seed-{seed}" / "run")
    if not a.only:
        rows = [figures(a.folder / f"seed-{seed}", seed) for seed in range(a.seeds)]
        found = {"recipe": "quickstart.yaml", "settings": a.set, "seeds": rows}
        (RESULTS / f"quickstart-{a.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("\n".join(table(rows)))


def run(folder: Path, seed: int, settings: Sequence[str] = (), reuse: Path | None = None) -> None:
    """Draw the files of a seed and run the quickstart on them; a run that is finished is left as it is.

    Raises:
        CalledProcessError: the run failed, or is another recipe's, and says so; one that the guard halts did not fail.
    """
    subprocess.run([sys.executable, RECIPES / "quickstart.py", "--seed", str(seed), "--out", folder], check=True)
    shutil.copy(RECIPES / "quickstart.yaml", folder)
    replaced = [part for each in (f"seed={seed}", *settings) for part in ("--set", each)]
    command = ["run", folder / "quickstart.yaml", *replaced, "--out", folder / "run"]
    command += ["--reuse", reuse] if reuse else []
    complete(command)


def complete(command: Sequence[str | Path]) -> None:
    """Run a command of genius-lite to its end.

    Raises:
        CalledProcessError: it failed, and says why; one that the guard halts did not fail.
    """
    done = subprocess.run([sys.executable, "-m", "genius_lite", *command], check=False)
    if done.returncode != HALTED:
        done.check_returncode()


def figures(folder: Path, seed: int) -> dict[str, Any]:
    """Return what a seed came to: accuracies of base and tuned model, and gains with their intervals, as shares."""
    run = RunFolder(folder / "run")
    report = run.round(1).report
    assert report and report.rollouts
    (tuned,) = report.evaluation
    return {
        "seed": seed,
        **{kind: _figures(accuracy, gain) for kind, accuracy, gain in tuned.accuracies},
        "sampled_tokens": report.rollouts.sampled_tokens,
        "pairs": report.pairs,
        "alarms": [f"{alarm.level}: {alarm.signal}" for alarm in report.alarms],
        "seconds": round(sum(run.stage_seconds().values())),
    }


def _figures(accuracy: Interval, gain: Interval | None) -> dict[str, Any]:
    assert gain  # the base model answers the same problems
    return {"tuned": accuracy.estimate, "base": accuracy.estimate - gain.estimate, "gain": msgspec.to_builtins(gain)}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write a row for each seed, and in how many the gain's interval is clear of zero."""
    yield "| seed | base, sampled | tuned | gain | base, greedy | tuned | gain | pairs | tokens |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [row["seed"]]
        for kind in KINDS:
            gain = points(msgspec.convert(row[kind]["gain"], Interval)).removesuffix(" points")
            cells += [percent(row[kind]["base"], 1), percent(row[kind]["tuned"], 1), gain]
        yield f"| {' | '.join(map(str, [*cells, row['pairs'], format(row['sampled_tokens'], ',')]))} |"
    for kind in KINDS:
        gains = [row[kind]["gain"] for row in rows]
        better, worse = sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains)
        mean = f"{100 * fmean(gain['estimate'] for gain in gains):+.1f} points on average"
        yield f"{kind}: {mean}; clear of zero in {better} of {len(rows)}, below it in {worse}"


if __name__ == "__main__":
    main()
