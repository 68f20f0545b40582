"""The quickstart from several seeds: other questions, other problems and another run each time.

    python recipes/study/quickstart_seeds.py runs/seeds --seeds 10
    python recipes/study/quickstart_seeds.py runs/random --name random --set pairs.choose=random --reuse runs/seeds \\
        --beside seeds
    python recipes/study/quickstart_seeds.py runs/rounds --name rounds --seeds 3 --questions 76 \\
        --set rounds=6 --set round_queries=12 --set evaluate.rollback=false

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
from statistics import fmean, stdev
from typing import Any

import msgspec

from genius_lite.cli.runs import HALTED
from genius_lite.evaluate.statistics import student_quantile
from genius_lite.report.summary import in_points, points
from genius_lite.results.evaluation import Interval
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import percent

RECIPES = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
KINDS = ("sampled", "greedy")
SIGNALS = ("agreement", "entropy", "length", "ended", "kl")
_LEAST = 8  # rounds that another follows, of which a rank correlation says something


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", type=int, nargs="+", help="run these, and write no results")
    parser.add_argument("--name", default="seeds", help="of the results")
    parser.add_argument("--questions", type=int, default=40, help="to learn from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="what a control replaces")
    parser.add_argument("--reuse", type=Path, help="another folder, whose rollouts are taken where they are the same")
    parser.add_argument("--beside", metavar="NAME", help="of other results, against which these are told seed by seed")
    a = parser.parse_args()
    for seed in a.only or range(a.seeds):
        reused = a.reuse and a.reuse / f"seed-{seed}" / "run"
        run(a.folder / f"seed-{seed}", seed, a.questions, a.set, reused)
    if not a.only:
        rows = [row for seed in range(a.seeds) for row in figures(a.folder / f"seed-{seed}", seed)]
        found = {"recipe": "quickstart.yaml", "settings": a.set, "seeds": rows}
        (RESULTS / f"quickstart-{a.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("\n".join(table(rows)))
        print("\n".join(foreseen(rows)))
        if a.beside:
            others = json.loads((RESULTS / f"quickstart-{a.beside}.json").read_text(encoding="utf-8"))["seeds"]
            print("\n".join(f"{a.name} less {a.beside}, {line}" for line in differences(rows, others)))


def run(folder: Path, seed: int, questions: int, settings: Sequence[str] = (), reuse: Path | None = None) -> None:
    """Draw the files of a seed and run the quickstart on them; a run that is finished is left as it is.

    Raises:
        CalledProcessError: the run failed, or is another recipe's, and says so; one that the guard halts did not fail.
    """
    drawn = ["--seed", str(seed), "--questions", str(questions), "--out", folder]
    subprocess.run([sys.executable, RECIPES / "quickstart.py", *drawn], check=True)
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


def figures(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Yield what each round of a seed came to, as shares: accuracies, gains over the base, label-free signals.

    `exported` is of the round whose model the run hands over: problems that report nothing chose it.
    """
    run = RunFolder(folder / "run")
    for report in run.reports:
        assert report.rollouts and report.metrics and report.metrics.signals and run.summary
        (tuned,) = report.evaluation
        signals = msgspec.to_builtins(report.metrics.signals)
        yield {
            "seed": seed,
            "round": report.round,
            "exported": report.round == run.summary.best,
            **{kind: _figures(accuracy, gain) for kind, accuracy, gain in tuned.accuracies},
            "sampled_tokens": report.rollouts.sampled_tokens,
            "pairs": report.pairs,
            "signals": {name: signals[name] for name in SIGNALS},
            "searched": {
                "value": report.rollouts.mean_value,
                "repeated": report.rollouts.repeated / (report.rollouts.candidates + report.rollouts.repeated),
            },
            "alarms": [f"{alarm.level}: {alarm.signal}" for alarm in report.alarms],
        }


def _figures(accuracy: Interval, gain: Interval | None) -> dict[str, Any]:
    assert gain  # the base model answers the same problems
    return {"tuned": accuracy.estimate, "base": accuracy.estimate - gain.estimate, "gain": msgspec.to_builtins(gain)}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write a row for each seed, its rounds one after the other, and what each round gains over seeds.

    The gain in a row is that of the round whose model was handed over, with its interval over problems.
    """
    names = ["seed"]
    for kind in KINDS:
        names += [f"base, {kind}", "after each round", "gain"]
    yield f"| {' | '.join([*names, 'pairs', 'tokens'])} |"
    yield "|---" * (len(names) + 2) + "|"
    for seed, handed in _handed_over(rows).items():
        rounds = [row for row in rows if row["seed"] == seed]
        cells = [str(seed)]
        for kind in KINDS:
            gain = in_points(msgspec.convert(handed[kind]["gain"], Interval))
            after = ", ".join(percent(row[kind]["tuned"]).removesuffix(" %") for row in rounds)
            cells += [percent(handed[kind]["base"]), f"{after} %", gain]
        counted = (sum(row[of] for row in rounds) for of in ("pairs", "sampled_tokens"))
        yield f"| {' | '.join([*cells, *(format(each, ',') for each in counted)])} |"
    for what, these in _groups(rows):
        for kind in KINDS:
            gains = [row[kind]["gain"] for row in these]
            better, worse = sum(gain["low"] > 0 for gain in gains), sum(gain["high"] < 0 for gain in gains)
            clear = f"clear of zero in {better} of {len(gains)}, below it in {worse}"
            yield f"{what}, {kind}: {_over_seeds([gain['estimate'] for gain in gains])}; {clear}"


def _groups(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the rows of each round, then those whose model was handed over."""
    for number in sorted({row["round"] for row in rows}):
        yield f"round {number}", [row for row in rows if row["round"] == number]
    yield "exported", [*_handed_over(rows).values()]


def _handed_over(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the row of each seed whose model its run handed over; the base model gains nothing."""
    nothing = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    base = {
        row["seed"]: {**row, **{kind: {**row[kind], "tuned": row[kind]["base"], "gain": nothing} for kind in KINDS}}
        for row in rows
    }
    return {**base, **{row["seed"]: row for row in rows if row["exported"]}}


def differences(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> Iterator[str]:
    """Write by how much tuned models answer better than those that other results handed over, paired by seed."""
    handed = _handed_over(others)
    for what, these in _groups([row for row in rows if row["seed"] in handed]):
        for kind in KINDS:
            gains = [row[kind]["tuned"] - handed[row["seed"]][kind]["tuned"] for row in these]
            yield f"{what}, {kind}: {_over_seeds(gains)}"


def foreseen(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write how each signal that needs no answers goes with what the next round brings.

    That is Spearman's correlation of the signal with the change of accuracy (mean of greedy and sampled) from one
    round to the next, over all seeds: of what a round's model answers, and of the next round's rollouts, which are
    searched before anything is learned from them. So is the spread of their values, of which the guard warns.
    """
    from scipy.stats import spearmanr

    after = {(row["seed"], row["round"] - 1): row for row in rows}
    followed = [(row, after[key]) for row in rows if (key := (row["seed"], row["round"])) in after]
    changes = [fmean(then[kind]["tuned"] - now[kind]["tuned"] for kind in KINDS) for now, then in followed]
    known = [{**now["signals"], **then["searched"]} for now, then in followed]
    if len(known) < _LEAST:
        return
    for name in known[0]:
        told = [(each[name], change) for each, change in zip(known, changes, strict=True) if each[name] is not None]
        values = [value for value, _ in told]
        if len(told) >= _LEAST and min(values) < max(values):
            found, _ = spearmanr(values, [change for _, change in told])
            yield f"{name} and the next round's change: {found:+.2f} over {len(told)} rounds"
    warned = [any("spread" in alarm for alarm in then["alarms"]) for _, then in followed]
    for what, having in (("that the guard warned of by their spread", True), ("not warned of", False)):
        these = [change for change, warning in zip(changes, warned, strict=True) if warning is having]
        yield f"rounds {what}: {sum(change < 0 for change in these)} of {len(these)} answered worse than the one before"


def _over_seeds(gains: list[float]) -> str:
    """Write their mean with Student's interval; each seed drew its own problems, so that these are in it too."""
    if len(gains) < 2:
        return f"{100 * gains[0]:+.1f} points"
    half = student_quantile(len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
    return points(Interval(fmean(gains), fmean(gains) - half, fmean(gains) + half))


if __name__ == "__main__":
    main()
