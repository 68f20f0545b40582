"""How long a round's stages will take, before any was run: known where a plan has measured this machine and model."""

from __future__ import annotations

from pathlib import Path

from genius_lite.job import Job
from genius_lite.planning.memory import EVALUATION, QUANTIZING, ROLLOUTS, TRAINING
from genius_lite.planning.plan import plan
from genius_lite.planning.sizes import SILENT
from genius_lite.report.board import ROUND_STAGES
from genius_lite.report.reading import stage_seconds

_SHOWN = {ROLLOUTS: "rollouts", TRAINING: "train", QUANTIZING: "merge", EVALUATION: "evaluate"}


def forecast(job: Job) -> dict[str, float]:
    """Seconds of each stage of a round, by the names on the board; of several rounds the last one's.

    Nothing is measured for it. What no plan and no earlier round has measured is not forecast at all: the default
    factors are off by several times, and a wrong hour is worse than none.
    """
    if stage_seconds(Path(job.recipe.out)).keys() >= set(ROUND_STAGES):
        return {}  # the run's own rounds say it all, and their rollouts take long to read
    found = plan(job, SILENT, measure=False)
    if "estimated" in (found.how["decoding"], found.how["learning"]):
        return {}
    return {"pairs": 0.0} | {_SHOWN[s.stage]: s.seconds for s in found.stages if s.stage in _SHOWN}
