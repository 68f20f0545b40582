"""Before a run begins: refuse what cannot fit. Only arithmetic, and only what is sure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from genius_lite.errors import UserError
from genius_lite.job import Job
from genius_lite.planning.earlier import Earlier, look_back, probe_of, same_run
from genius_lite.planning.machine import Machine, look
from genius_lite.planning.memory import IMPORT
from genius_lite.planning.probe import Probe, short
from genius_lite.planning.remedies import refusal, remedy
from genius_lite.planning.sizes import lacking, sizes
from genius_lite.prompts import StepDelimiter, Vocabulary

_SURE = 0.8  # of what is reckoned: a run may take 15 % less than that


def require_room(job: Job, identity: dict[str, Any], reuse: Path | None = None) -> None:
    """Refuse a run for which memory or disk cannot suffice. Nothing is measured, and no weights are read.

    What a run folder has finished already needs no memory any more, and its files no more disk. Responses are taken to
    be short, unless the folder's first round says how long they are.

    Args:
        identity: the job's.
        reuse: another run's folder, from which what is imported may be taken.

    Raises:
        UserError: a stage, how much it takes, and what would help.
    """
    out = Path(job.recipe.out)
    if not same_run(out, identity):
        return  # it is refused for that when it is opened
    earlier = look_back(out, job.recipe.rounds)
    if reuse and (reuse / "hf-checkpoint").exists():
        earlier = replace(earlier, done=earlier.done | {(IMPORT, 0)})
    with Vocabulary.open(job.source.path) as vocabulary:
        probe = probe_of(out, StepDelimiter(vocabulary.pieces), job.recipe.foresight.candidates) or short(
            job.recipe.foresight
        )
    require_room_on(job, look(out), probe, earlier)


def require_room_on(job: Job, machine: Machine, probe: Probe, earlier: Earlier) -> None:
    """The same on a machine, and at lengths of responses, that are given.

    Raises:
        UserError: as `require_room`.
    """
    lacks = lacking(job, sizes(job, machine, probe, slots=1), machine, earlier, _SURE)
    if lacks:
        raise UserError(f"{refusal(lacks, remedy(job, machine, probe, earlier))}; --anyway runs all the same")
