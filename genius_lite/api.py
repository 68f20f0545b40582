"""The stages of a run, one by one: what a program needs that does not call `run`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from genius_lite.job import prepare
from genius_lite.plan.history import drop_rehearsal
from genius_lite.plan.suggestions import require_room
from genius_lite.recipe import Recipe
from genius_lite.report.progress import Progressor
from genius_lite.report.tracking import tracked
from genius_lite.round import Round
from genius_lite.rundir import OpenRun
from genius_lite.stages import import_base
from genius_lite.stopping import Stop
from genius_lite.tuning import engine_settings


@contextmanager
def open_run(recipe: Recipe, progress: Progressor | None = None) -> Iterator[Callable[[int], Round]]:
    """Hold the recipe's run folder, with the model imported; yields what makes the round of a number.

    The stages (`genius_lite.stages`) take the round: `sample`, `pair`, `train`, `next_policy` and `evaluate`, in this
    order. What a stage made is kept in the folder, and calling it again reads it. Round 0 is the base model; `evaluate`
    it with `baseline` if later rounds are to be set beside it.

    Args:
        progress: where the stages are shown; nothing is if not given.

    Raises:
        UserError: as `run`.
    """
    job = prepare(recipe)
    identity = job.identity()
    drop_rehearsal(Path(recipe.out), identity)
    require_room(job, identity)
    progress = progress or Progressor(Console(quiet=True))
    with OpenRun(Path(recipe.out), identity) as folder, tracked(recipe, folder.path) as tracker:
        base = import_base(job, folder, progress)
        engine, stop = engine_settings(recipe.sampler, job.source, job.context, progress), Stop()
        yield lambda number: Round(number, job, base, engine, folder, progress, stop, tracker)
