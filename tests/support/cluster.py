"""Ray's command, and the rollouts of a round that its nodes sample, or this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from genius_lite.errors import Stop
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.round import Policy, Session
from genius_lite.pipeline.stages import sample
from genius_lite.recipe import Recipe
from genius_lite.records import Rollout
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.tracking import Tracker
from genius_lite.rundir.folder import open_folder
from genius_lite.rundir.lines import read_records
from genius_lite.sampler.messages import EngineSettings
from genius_lite.weights.importing import Base

RAY = str(Path(sys.executable).with_name("ray"))


def rollouts(
    recipe: Recipe, address: str, heard: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Rollout], list[str]]:
    """Of the first round, as they are in its log, and what was said meanwhile, which `heard` is told at once."""
    job = prepare(recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"cluster": address})}))
    progress, said = TerminalProgress(Console(quiet=True)), list[str]()

    def say(line: str) -> None:
        said.append(line)
        heard(line)

    progress.say = say
    with open_folder(Path(recipe.out), job.identity) as folder:
        slots, parked = recipe.sampler.slots, recipe.sampler.parked
        assert isinstance(slots, int)
        assert isinstance(parked, int)
        engine = EngineSettings(slots=slots, context=job.context, threads=1, parked=parked)
        base, tracker = Base(job.source, folder / "hf-checkpoint"), Tracker(recipe, folder.path)
        r = Session(job, base, engine, folder, progress, Stop(), tracker).round(1)
        sample(r, Policy(job.source.path))
    found = read_records(r.here / "rollouts.jsonl", Rollout)
    assert len({r.query.id for r in found}) == len(found) == recipe.queries.limit
    return {r.query.id: r for r in found}, said
