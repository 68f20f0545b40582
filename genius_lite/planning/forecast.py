"""How long a round's stages will take, before any was run: known where a plan has measured this machine and model."""

from __future__ import annotations

from pathlib import Path

from genius_lite.pipeline.job import Job
from genius_lite.planning.memory import EVALUATION, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.plan import plan
from genius_lite.progress import ROUND_STAGES, SILENT, Stage
from genius_lite.rundir.folder import RECIPE
from genius_lite.rundir.reader import RunFolder

_SHOWN = {
    ROLLOUTS: Stage.ROLLOUTS,
    TRAINING: Stage.TRAIN,
    QUANTIZING: Stage.MERGE,
    EVALUATION: Stage.EVALUATE,
}


def forecast(job: Job) -> dict[Stage, float]:
    """Seconds of each stage of a round, by the names on the board; of several rounds the last one's.

    Nothing is measured for it. What no plan and no earlier round has measured is not forecast at all: the default
    factors are off by several times, and a wrong hour is worse than none.
    """
    if _measured(Path(job.recipe.out)) >= set(ROUND_STAGES):
        return {}  # the run's own rounds say it all, and their rollouts take long to read
    found = plan(job, SILENT, measure=False)
    if "estimated" in (found.how["decoding"], found.how["learning"]):
        return {}
    return {Stage.PAIRS: 0.0} | {_SHOWN[s.stage]: s.seconds for s in found.stages if s.stage in _SHOWN}


def _measured(out: Path) -> set[Stage]:
    """The stages that the run's own rounds have measured."""
    return set(RunFolder(out).stage_seconds()) if (out / RECIPE).is_file() else set()
