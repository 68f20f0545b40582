"""A run folder, finished or not, as one record: what its report shows. Reads only; a run may be going on in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from genius_lite.errors import UserError
from genius_lite.evaluate.cooling import Beside
from genius_lite.evaluate.guard import Alarm, Reading, Watched, readings
from genius_lite.evaluate.record import read_evaluation, read_own
from genius_lite.evaluate.results import TaskResult
from genius_lite.evaluate.signals import Signals
from genius_lite.queries import held_count
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.reading import round_folders
from genius_lite.report.summary import rollout_figures
from genius_lite.report.trees import QUERIES, Explorer, explore, pair_weight, whole_records
from genius_lite.rundir import ROUNDED
from genius_lite.weights.importing import SOURCE_FILE


class Timed(msgspec.Struct, frozen=True):
    """A line of `timings.jsonl`. Memory in bytes: the most of the run's process so far, and of the stage's sampler."""

    stage: str
    seconds: float
    amount: float
    peak_bytes: int | None = None
    sampler_peak_bytes: int | None = None


@dataclass(frozen=True)
class PairFigures:
    """Of a round's pairs: means over them; `relaxed` is the share whose calibration weight is below 1."""

    chosen_tokens: float
    rejected_tokens: float
    gap: float
    weight: float
    relaxed: float


@dataclass(frozen=True)
class RoundData:
    """A round, as far as it went; 0 is the base model. `figures` are its `report.json`, or what of it is there."""

    number: int
    finished: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    tasks: list[TaskResult] = field(default_factory=list)
    signals: Signals | None = None
    watched: Watched | None = None
    readings: list[Reading] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    pairs: PairFigures | None = None
    given_name: str = ""

    @property
    def name(self) -> str:
        return self.given_name or (f"round {self.number}" if self.number else "base model")

    @property
    def training(self) -> dict[str, Any]:
        """What `train.json` says; empty before the training ended."""
        return self.figures.get("training", {})


@dataclass(frozen=True)
class RunData:
    """A run. `best` is None until it is decided; `imported` is the time of what precedes the rounds.

    `own` is the user's own file, where the base model that rounds are told against is another one.
    """

    name: str
    recipe: dict[str, Any]
    model: dict[str, Any]
    now: str
    summary: dict[str, Any] | None
    best: int | None
    own: RoundData | None
    base: RoundData
    rounds: list[RoundData]
    imported: list[Timed]
    exported: dict[str, str]
    explorer: Explorer

    @property
    def at_best(self) -> list[Beside]:
        """The round that is shown beside the base model, each at its best temperature."""
        return msgspec.convert(self.shown.figures.get("at_best", []), list[Beside])

    @property
    def policies(self) -> list[RoundData]:
        """The base model and the rounds."""
        return [self.base, *self.rounds]

    @property
    def shown(self) -> RoundData:
        """The round that is set beside the base model: the best, else the latest that was measured."""
        if self.best:
            return self.rounds[self.best - 1]
        measured = [r for r in self.rounds if r.tasks or r.signals]
        return measured[-1] if measured else self.base


def gather(run: Path, queries: int = QUERIES) -> RunData:
    """Read all of a run folder that its report shows.

    Args:
        queries: whose rollout trees are read, at most.

    Raises:
        UserError: it is no run folder, a file in it is damaged, or another version wrote it.
    """
    try:
        return _gathered(run, queries)
    except msgspec.ValidationError as e:
        raise UserError(f"{run} was made by another version of genius-lite, which has a report of it: {e}") from None


def _gathered(run: Path, queries: int) -> RunData:
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is no run folder; name the `out` of a recipe")
    recipe = _json(run / "recipe.json")
    numbers = [number for number, _ in round_folders(run)]
    own, base = _base(run)
    rounds: list[RoundData] = []
    for number in (n for n in numbers if n):
        rounds.append(_round(run, number, recipe, base.signals, rounds))
    best = _json(run / "best.json")["round"] if (run / "best.json").exists() else None
    summary = _json(run / "summary.json") if (run / "summary.json").exists() else None
    hf_checkpoint = run / "hf-checkpoint" / SOURCE_FILE
    return RunData(
        name=run.resolve().name,
        recipe=recipe,
        model=_json(hf_checkpoint) if hf_checkpoint.exists() else {},
        now=_now(run, recipe, rounds, summary),
        summary=summary,
        best=best,
        own=own,
        base=base,
        rounds=rounds,
        imported=_timed(run),
        exported=_exported(run),
        explorer=explore(run, [r.number for r in rounds], recipe, queries),
    )


def _base(run: Path) -> tuple[RoundData | None, RoundData]:
    """The user's own file, if it is not the base that rounds are told against; and that one."""
    first, rounded = run / "round-0", run / ROUNDED
    own = _measured(first) if (first / "evaluation").is_dir() else RoundData(0, timed=_timed(first))
    if not (rounded / "evaluation").is_dir():
        return None, own
    return replace(own, given_name="your file"), _measured(rounded)


def _measured(folder: Path) -> RoundData:
    found = read_own(folder)
    return RoundData(0, True, tasks=found.tasks, signals=found.signals, timed=_timed(folder))


def _round(
    run: Path,
    number: int,
    recipe: dict[str, Any],
    base: Signals | None,
    earlier: Sequence[RoundData],
) -> RoundData:
    folder = run / f"round-{number}"
    timed, pairs = _timed(folder), _pair_figures(folder, recipe)
    if not (folder / "report.json").exists():
        return _unfinished(run, number, timed, pairs, recipe["rounds"])
    report = _json(folder / "report.json")
    watched = msgspec.convert(report["watched"], Watched)
    return RoundData(
        number=number,
        finished=True,
        figures=report,
        tasks=msgspec.convert(report["evaluation"], list[TaskResult]),
        signals=watched.signals,
        watched=watched,
        readings=readings(watched, base, earlier[0].watched if earlier else None),
        alarms=msgspec.convert(report["alarms"], list[Alarm]),
        timed=timed,
        pairs=pairs,
    )


def _unfinished(run: Path, number: int, timed: list[Timed], pairs: PairFigures | None, rounds: int) -> RoundData:
    """From the files that are there already."""
    folder, figures = run / f"round-{number}", {}
    if rollouts := list(whole_records(folder / "rollouts.jsonl", Rollout)):
        figures |= rollout_figures(rollouts)
    sampling = [line for line in timed if line.stage == "rollouts"]
    if seconds := sum(line.seconds for line in sampling):
        figures["tokens_per_s"] = sum(line.amount for line in sampling) / seconds
    if pairs:
        figures["pairs"] = sum(1 for _ in whole_records(folder / "pairs.jsonl", PreferencePair))
    found = {"pairs_left_out": "filtered.json", "training": "adapter/train.json", "quantized": "quantized.json"}
    figures |= {key: _json(folder / name) for key, name in found.items() if (folder / name).exists()}
    if not (folder / "evaluation").is_dir():
        return RoundData(number, figures=figures, timed=timed, pairs=pairs)
    evaluation = read_evaluation(run, number, rounds)
    return RoundData(
        number, figures=figures, tasks=evaluation.tasks, signals=evaluation.signals, timed=timed, pairs=pairs
    )


def _pair_figures(folder: Path, recipe: dict[str, Any]) -> PairFigures | None:
    rows = []
    for p in whole_records(folder / "pairs.jsonl", PreferencePair):
        gap = p.chosen_value - p.rejected_value
        rows.append((len(p.chosen_tokens), len(p.rejected_tokens), gap, pair_weight(p, recipe["learner"])))
    if not rows:
        return None
    chosen, rejected, gap, weights = zip(*rows, strict=True)
    relaxed = fmean(weight < 1 for weight in weights)
    return PairFigures(fmean(chosen), fmean(rejected), fmean(gap), fmean(weights), relaxed)


def searched_count(recipe: dict[str, Any]) -> int:
    """How many queries a round searches, by what a run's folder keeps of its recipe."""
    count = int(recipe["queries"].partition(",")[0])
    return count - held_count(count, recipe["learner"]["holdout"], recipe["evaluate"]["queries"])


def _now(run: Path, recipe: dict[str, Any], rounds: list[RoundData], summary: dict[str, Any] | None) -> str:
    """What the run is at."""
    if summary:
        return f"stopped: {summary['stopped']}" if summary["stopped"] else "finished"
    if not rounds:
        return (
            "not finished: import"
            if not (run / "hf-checkpoint").exists()
            else "not finished: evaluation of the base model"
        )
    last, folder = rounds[-1], run / f"round-{rounds[-1].number}"
    if last.finished:
        return f"not finished: after round {last.number}"
    done, wanted = last.figures.get("queries", 0), searched_count(recipe)
    if done < wanted:
        return f"not finished: round {last.number}, rollouts of {done} of {wanted} queries"
    stages = {"pairs": ["pairs.jsonl"], "training": ["adapter"], "merge": ["policy.gguf"]}
    missing = [stage for stage, names in stages.items() if not any((folder / name).exists() for name in names)]
    return f"not finished: round {last.number}, {missing[0] if missing else 'evaluation'}"


def _exported(run: Path) -> dict[str, str]:
    """File -> SHA-256."""
    file = run / "export" / "SHA256SUMS"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _timed(folder: Path) -> list[Timed]:
    return list(whole_records(folder / "timings.jsonl", Timed))


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
