"""The arms of PLAN.md: each a run of one recipe with some settings replaced, from one seed or several.

    python recipes/study/arms.py runs/arms --on smollm2 --seeds 1

Runs lie in FOLDER/RECIPE/ARM-SEED; the same command goes on with them, and takes rollouts from a finished arm that
sampled the same. Writes `results/arms-RECIPE.json` of all finished runs that lie there, those of other arms and seeds
included, and prints the table of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from quickstart_seeds import complete

from genius_lite.evaluate.results import best_temperature, by_temperature, results, votes
from genius_lite.evaluate.statistics import pooled_difference
from genius_lite.recipe.reader import load
from genius_lite.report.compare import Row, compare_runs
from genius_lite.report.summary import in_points
from genius_lite.results.evaluation import Cooled, Interval, Scores
from genius_lite.rundir.folder import COOLED
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.text import percent

HERE = Path(__file__).parent

_VOTE = {"foresight.steps": 0, "pairs.choose": "agreed"}
_SCPO = {**_VOTE, "pairs.weigh": "votes", "learner.loss": "dpo", "learner.sft_weight": 1}
_TOLD = {"learner.loss": "sft", "learner.epochs": 2}
_AMONG = {"foresight.steps": 1, "foresight.beams": 1, "foresight.candidates": 8}
_FEW = 0.4
"""Share of the questions that an arm with a search asks, so that all sample about as many tokens."""

ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "A": (_FEW, {}),
    "B": (_FEW, {"rounds": 3, "round_queries": _FEW / 3}),
    "C": (1, _SCPO),
    "D": (1, {**_SCPO, **_AMONG}),
    "E": (1, {**_VOTE, **_TOLD}),
    "E3": (1, {**_VOTE, **_TOLD, "rounds": 3, "round_queries": 1 / 3}),
    "F": (_FEW, _TOLD),
    "F3": (_FEW, {**_TOLD, "rounds": 3, "round_queries": _FEW / 3}),
    "G": (_FEW, {"foresight.value": "step"}),
    "I": (1, {**_TOLD, "foresight.steps": 0, "pairs.choose": "random", "foresight.top_p": 0.9}),
    "R": (_FEW, {"pairs.choose": "random"}),
    "V": (1, {**_VOTE, **_AMONG, **_TOLD}),
    "V3": (1, {**_VOTE, **_AMONG, **_TOLD, "rounds": 3, "round_queries": 1 / 3}),
    "W": (1, {**_AMONG, **_TOLD, "pairs.choose": "random"}),
    "W3": (1, {**_AMONG, **_TOLD, "pairs.choose": "random", "rounds": 3, "round_queries": 1 / 3}),
    "S": (1, {**_SCPO, "pairs.choose": "random", "pairs.weigh": "equally"}),
}
"""By the letters of PLAN.md: which share of the recipe's questions an arm asks, and what it replaces."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--on", choices=sorted(p.stem[5:] for p in HERE.glob("arms-*.yaml")), default="smollm2")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", action="store_true", help="run them, and write no results")
    a = parser.parse_args()
    recipe, folder = HERE / f"arms-{a.on}.yaml", a.folder / a.on
    for seed in range(a.seeds):
        for arm in a.arms:
            run(recipe, folder, arm, seed)
    if not a.only:
        rows = [*figures(finished(folder, a.arms))]
        text = json.dumps({"recipe": recipe.name, "arms": rows}, indent=1) + "\n"
        (HERE / "results" / f"arms-{a.on}.json").write_text(text, encoding="utf-8")
        print("\n".join(table(rows)))


def finished(folder: Path, first: list[str]) -> list[Path]:
    """List the finished runs of a recipe, by seed: of these arms first, which others are told against."""
    arms = [*first, *(arm for arm in ARMS if arm not in first)]
    over = [(summary.parent, *summary.parent.name.rpartition("-")[::2]) for summary in folder.glob("*-*/summary.json")]
    known = [(arms.index(arm), int(seed), run) for run, arm, seed in over if arm in arms and seed.isdecimal()]
    return [run for _, _, run in sorted(known)]


def run(recipe: Path, folder: Path, arm: str, seed: int) -> None:
    """Run an arm from a seed, if that was not done yet.

    Raises:
        CalledProcessError: the run failed, and says why; one that the guard halts did not fail.
    """
    here = folder / f"{arm}-{seed}"
    if (here / "summary.json").exists():
        return
    settings = [f"seed={seed}", *settings_of(arm, load(recipe, []).queries.limit or 1)]
    command = ["run", recipe, *(part for each in settings for part in ("--set", each)), "--out", here]
    finished = [other for other in sorted(folder.glob(f"*-{seed}")) if (other / "summary.json").exists()]
    if like := next((other for other in finished if _sampled_alike(other, recipe, settings)), None):
        command += ["--reuse", like]
    print(f"{arm}, seed {seed}: {' '.join(settings)}", flush=True)
    complete(command)


def settings_of(arm: str, questions: int) -> list[str]:
    """List what an arm replaces, as `--set` takes it; shares of the questions become numbers of them."""
    share, own = ARMS[arm]
    if each := own.get("round_queries"):
        own = {**own, "round_queries": round(questions * each)}
    return [f"queries.limit={round(questions * share)}", *(f"{key}={value}" for key, value in own.items())]


def _sampled_alike(other: Path, recipe: Path, settings: list[str]) -> bool:
    return RunFolder(other).recipe["foresight"] == load(recipe, settings).identity()["foresight"]


def figures(runs: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield what each round of each arm came to, over its seeds, on each task; of the last, or all, more than gains.

    `tokens` are those that were sampled for the questions of this round and of those before it.
    """
    found = compare_runs(runs)
    for row in found:
        arm = row.arm.rpartition("-")[0]
        of_arm = [(run.name.rpartition("-")[2], RunFolder(run)) for run in runs if run.name.rpartition("-")[0] == arm]
        gains = _gains(row, like_first=row.seeds == found[0].seeds)
        if row.task == found[-1].task:
            rounds = [(seed, run.base, run.round(row.round)) for seed, run in of_arm]
            reports = [run.round(number).report for _, run in of_arm for number in range(1, row.round + 1)]
            tokens = sum(report.rollouts.sampled_tokens for report in reports if report and report.rollouts)
            gains |= {"tokens": tokens / len(of_arm), **_over_base(rounds), **_means(rounds)}
        yield gains


def _gains(row: Row, *, like_first: bool) -> dict[str, Any]:
    assert row.sampled_gain and row.greedy_gain
    differences = {"to_first": row.to_first, "greedy_to_first": row.greedy_to_first} if like_first else {}
    return {
        "task": row.task,
        "arm": row.arm.rpartition("-")[0],
        "round": row.round,
        "seeds": row.seeds,
        "sampled": row.sampled,
        "sampled_gain": msgspec.to_builtins(row.sampled_gain),
        "greedy": row.greedy,
        "greedy_gain": msgspec.to_builtins(row.greedy_gain),
        **{name: msgspec.to_builtins(found) for name, found in differences.items() if found},
    }


def _over_base(rounds: list[tuple[str, RoundFolder, RoundFolder]]) -> dict[str, Any]:
    """Set a round beside what its base model does without training: at its best temperature, and by a vote.

    Over problems and seeds, each task weighing alike. The tuned model is told at its own best temperature of the two
    that it was asked at, and greedily beside the majority of the base's samples, which takes as many answers.
    """
    at_best, by_vote = [], []
    for _, base, here in rounds:
        cooled = msgspec.json.decode((base.path / COOLED).read_bytes(), type=Cooled)
        tuned = by_temperature(here.responses, "report")
        at_best.append((cooled.scores, tuned[best_temperature(by_temperature(here.responses, "choose"))]))
        by_vote.append((votes(base.responses), tuned[0.0]))
    return {
        "best_gain": msgspec.to_builtins(_pooled(at_best)),
        "over_vote": msgspec.to_builtins(_pooled(by_vote)),
        "votes": results(rounds[0][1].responses)[0].samples,
    }


def _pooled(of_seeds: list[tuple[Scores, Scores]]) -> Interval:
    """Compare two ways to answer, of each seed, on the problems that all of them have."""
    base, tuned = [], []
    for task in of_seeds[0][0]:
        every = [scores[task] for both in of_seeds for scores in both]
        shared = [problem for problem in every[0] if all(problem in scores for scores in every)]
        for found, scores in ((base, every[::2]), (tuned, every[1::2])):
            found.append([[of[problem] for problem in shared] for of in scores])
    return pooled_difference(base, tuned)


def _means(rounds: list[tuple[str, RoundFolder, RoundFolder]]) -> dict[str, Any]:
    """Average over seeds what has no interval: pairs of the round; majority and any of all samples, over tasks.

    Gains are also told by seed.
    """
    of_seeds, by_seed = [], {kind: dict[str, float]() for kind in ("sampled", "greedy")}
    for seed, base, here in rounds:
        report, first, now = here.report, results(base.responses), results(here.responses)
        assert report and report.metrics
        signals, of_base = report.metrics.signals, base.signals
        for kind, gains in by_seed.items():
            pairs = [(one.by_kind[kind][0], other.by_kind[kind][0]) for one, other in zip(now, first, strict=True)]
            gains[seed] = round(fmean(now.estimate - before.estimate for now, before in pairs if now and before), 4)
        most = {
            f"{name}{which}": fmean(_of_most(getattr(result, of)) for result in found)
            for name, of in (("maj", "most"), ("pass", "some"))
            for which, found in (("", now), ("_base", first))
        }
        given = {
            f"same{which}": _mean([each.commonest and each.commonest.share for each in found])
            for which, found in (("", now), ("_base", first))
        }
        of_seeds.append(
            {
                "pairs": report.pairs,
                **most,
                **given,
                "kl": signals.kl if signals else None,
                "entropy": signals.entropy / of_base.entropy if signals and of_base else None,
                "length": signals.length / of_base.length if signals and of_base else None,
                "ended": signals.ended if signals else None,
            }
        )
    return {**{key: _mean([each[key] for each in of_seeds]) for key in of_seeds[0]}, "by_seed": by_seed}


def _of_most(by_samples: dict[str, Interval]) -> float:
    return by_samples[max(by_samples, key=int)].estimate


def _mean(values: list[Any]) -> float | None:
    return None if None in values else fmean(values)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write a row for each round of each arm, over all tasks; then what its last round gains on each of several.

    `at best` is the gain with each of the two at its best temperature; `less the vote` sets greedy answers beside the
    majority of the base model's k samples; `same` is the share of the commonest answer, `ended` that of held-out
    answers that came to an end. Entropy and length are ratios to the base model's, of held-out queries.
    """
    whole = [row for row in rows if "tokens" in row]
    k = whole[0]["votes"]
    names = ["arm", "round", "seeds", "tokens so far", "pairs", "at 1", "greedily", "at best", "less the vote"]
    names += [f"maj@{k}", f"pass@{k}", "same", "ended", "KL", "entropy", "length"]
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in whole:
        drawn = [f"{percent(row[f'{of}_base'])} to {percent(row[of])}" for of in ("maj", "pass", "same")]
        shares = ["-" if row[key] is None else format(row[key], ".2f") for key in ("ended", "kl", "entropy", "length")]
        counted = [format(round(row[key]), ",") for key in ("tokens", "pairs")]
        beside = [_points(row[of]) for of in ("best_gain", "over_vote")]
        cells = [row["arm"], row["round"], row["seeds"], *counted, *_told(row, "_gain"), *beside, *drawn, *shares]
        yield f"| {' | '.join(map(str, cells))} |"
    last, first = {row["arm"]: row["round"] for row in whole}, whole[0]["arm"]
    for row in (row for row in rows if row["round"] == last[row["arm"]]):
        sampled, greedy = _told(row, "_gain")
        line = f"{row['arm']}, {row['task']}: at temperature 1 {sampled}, greedily {greedy}"
        if "to_first" in row and row["round"] == last[first]:
            line += f"; less {first}: {_points(row['to_first'])}, {_points(row['greedy_to_first'])}"
        yield line


def _told(row: dict[str, Any], of: str) -> list[str]:
    return [_points(row[f"{kind}{of}"]) for kind in ("sampled", "greedy")]


def _points(gain: dict[str, float]) -> str:
    return in_points(msgspec.convert(gain, Interval))


if __name__ == "__main__":
    main()
