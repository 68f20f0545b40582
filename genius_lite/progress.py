"""The stages of a run by name, and what a stage tells while it works; who shows it, and how, is not its business."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from genius_lite.records import Rollout
from genius_lite.results.rounds import RoundReport

Advance = Callable[[float], None]
"""Counts what a stage has done since it was called last."""


class Stage(StrEnum):
    """A stage of a run, as it stands in `timings.jsonl` and in every table. Its amount is counted in `unit`."""

    IMPORT = "import", "matrices"
    ROLLOUTS = "rollouts", "tokens"
    PAIRS = "pairs", "pairs"
    TRAIN = "train", "passes"
    MERGE = "merge", "MB", 1e-6
    EVALUATE = "evaluate", "tokens"
    EXPORT = "export", "MB", 1e-6

    unit: str
    scale: float

    def __new__(cls, name: str, unit: str, scale: float = 1.0) -> Stage:
        stage = str.__new__(cls, name)
        stage._value_, stage.unit, stage.scale = name, unit, scale
        return stage


def named(number: int) -> str:
    """Name a round; round 0 is the base model."""
    return f"round {number}" if number else "base model"


BASE_STAGES = (Stage.IMPORT, Stage.EVALUATE)
ROUND_STAGES = (Stage.ROLLOUTS, Stage.PAIRS, Stage.TRAIN, Stage.MERGE, Stage.EVALUATE)


class Progress:
    """Takes what the stages of a run tell, and does nothing with it; whoever shows it has methods of their own."""

    def say(self, line: str) -> None:
        """Take a line for the user."""

    @contextmanager
    def showing(self, out: Path, model: str, queries: int, rounds: int, forecast: dict[Stage, float]) -> Iterator[None]:
        """Show a run in the folder `out` while the block lasts; `forecast`: seconds of a round's stages, if known."""
        yield

    def enter(self, number: int, stage: Stage) -> None:
        """Note that a stage of a round begins, whether there is anything left to do in it or not."""

    def finished(self, report: RoundReport, lights: dict[str, str], best: int) -> None:
        """Take a round that is over (0: the base model), and the best so far; lights: signal -> ok, warn or halt."""

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        """Count something of `total` steps; gives the function that does.

        Args:
            unit: what is counted, as it stands behind a rate: "queries", "MB".
            scale: what one step is in that unit (1e-6 for bytes shown as MB).
            done: steps that were done before, by an earlier process.
            at_once: steps that are under way together, of which half is done on average, and not counted.
        """
        yield lambda steps: None

    def searched_before(self, rollouts: Sequence[Rollout]) -> None:
        """Take the rollouts of this round that an earlier process finished."""

    def stepped(self, so_far: Rollout, decode: Callable[[list[int]], str]) -> None:
        """Take a search that has made a step."""

    def searched(self, rollout: Rollout) -> None:
        """Take a search that has ended."""


SILENT = Progress()
