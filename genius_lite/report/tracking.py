"""A run's figures for the experiment trackers that accelerate knows; off unless the recipe names one.

The axis is the number of optimizer updates since the run began, over all rounds: training has a step for each, and a
round's other figures stand at its last one. `tracking.json` remembers how far that was told, so that a run that goes on
repeats nothing, and one that is tracked only later tells what it did before.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import UserError
from genius_lite.evaluate.record import Evaluation
from genius_lite.hardware.device import learner_device
from genius_lite.recipe import Prefix, Recipe, Sampler
from genius_lite.report.columns import values
from genius_lite.results.evaluation import Signals, TaskResult
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.disk import put
from genius_lite.rundir.documents import read_json
from genius_lite.rundir.folder import TRACKED, TRACKING, json_bytes

_PLACES, _SOURCES = {"out", *Sampler.places()}, {"gguf", "weights", "source"}  # keys of the recipe


def require_trackers(recipe: Recipe) -> None:
    """Refuse a tracker that is not there, and a project that is no name: TensorBoard makes it a folder.

    Raises:
        UserError: its package is not installed, or the project's name leads out of the run's folder.
    """
    project = recipe.tracking.project
    if recipe.tracking.trackers and (project in (".", "..") or {"/", "\\", "\0"} & {*project}):
        raise UserError(f"tracking.project: {project} is no name of a project; write one without slashes")
    for name in recipe.tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.with: {name} is not installed; pip install {name}, or take it out")


class Tracker:
    """Tells each update and each round to every tracker, once, until it is closed; `folder` is the run's."""

    def __init__(self, recipe: Recipe, folder: Path):
        self._accelerator: Any = None
        self._mark: dict[str, Any] = {}
        self._mark_file = folder / TRACKED
        self._before = 0  # updates of the rounds before
        if not recipe.tracking.trackers:
            return
        from accelerate import Accelerator

        begun = read_json(self._mark_file)
        self._mark = begun or {"update": 0, "round": -1, "id": uuid.uuid4().hex[:8]}
        files = folder / TRACKING
        files.mkdir(exist_ok=True)
        accelerator = Accelerator(
            cpu=learner_device() == "cpu",
            mixed_precision="no",  # nothing is computed through it
            log_with=list(recipe.tracking.trackers),
            project_dir=str(files),
        )
        hosted = {"name": recipe.tracking.name or folder.name, "resume": "allow"}
        accelerator.init_trackers(
            recipe.tracking.project,
            config=None if begun else _flat(_public(recipe.model_dump(mode="json", by_alias=True))),
            init_kwargs={"wandb": {**hosted, "id": self._mark["id"], "dir": str(files)}, "trackio": hosted},
        )
        self._accelerator = accelerator
        self._told()

    def base(self, found: Evaluation) -> None:
        """Tell the figures of the user's own file, before the first update."""
        self._round(0, _evaluated(found.tasks, found.signals))

    def update(self, number: int, row: dict[str, float]) -> None:
        """Tell an update of the round's training: its number in the round, from 0, and its row of the curve."""
        step = self._before + number + 1
        if self._accelerator and step > self._mark["update"]:
            self._accelerator.log({f"train/{name}": value for name, value in row.items()}, step=step)
            self._told(update=step)

    def round(self, report: RoundReport) -> None:
        """Tell a finished round's report, and the updates of its training that were not told yet."""
        if training := report.training:
            for number, row in enumerate(training.curve):
                self.update(number, row)
            self._before += training.updates
        signals = report.metrics.signals if report.metrics else None
        figures = {f"round/{key}": float(v) for key, v in values(report).items() if isinstance(v, int | float)}
        self._round(report.round, figures | _evaluated(report.evaluation, signals))

    def close(self) -> None:
        if self._accelerator:
            for tracker in self._accelerator.trackers:  # `end_training` would part the processes that train together
                tracker.finish()

    def _round(self, number: int, figures: dict[str, float]) -> None:
        if self._accelerator and number > self._mark["round"]:
            self._accelerator.log({"round/number": number, **figures}, step=self._before)
            self._told(round=number)

    def _told(self, **upto: int) -> None:
        self._mark |= upto
        put(self._mark_file, json_bytes(self._mark, TRACKED))


def _evaluated(tasks: list[TaskResult], signals: Signals | None) -> dict[str, float]:
    """Name the accuracies on the tasks, and the signals of the held-out queries."""
    shown: dict[str, float] = {}
    for task in tasks:
        shown[f"tasks/{task.task}/judged"] = task.judged.estimate
        for kind, accuracy, _ in task.accuracies[:2]:
            shown[f"tasks/{task.task}/{kind}"] = accuracy.estimate
    seen = msgspec.structs.asdict(signals) if signals else {}
    return shown | {f"signals/{name}": value for name, value in seen.items() if isinstance(value, int | float)}


def _public(value: Any) -> Any:
    """Leave out what others may not see: places of this machine, and its user's name in paths."""
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _public(item) for key, item in value.items() if key not in _PLACES}
    paths = {key: Prefix.public(item) for key, item in kept.items() if key in _SOURCES and isinstance(item, str)}
    return kept | paths


def _flat(values: dict[str, Any], above: str = "") -> dict[str, str | int | float | bool]:
    """Flatten to `foresight.beams: 2`: sections become parts of the names, lists text."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return found
