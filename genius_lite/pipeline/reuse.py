"""Take from another run what this one would make just the same, so that an ablation pays only for what differs.

What decides a stage are some keys of the run's identity (`recipe.json`). Where they are equal, the random numbers are
too, and the stage is the same but for rounding. The random numbers of a search are its question's own: a run that asks
more questions takes the rollouts of those that were searched already.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from genius_lite.records import Query, Rollout
from genius_lite.results.evaluation import Answers, Response
from genius_lite.rundir.folder import (
    ANSWERS,
    BASELINE,
    CHECKPOINT,
    EVALUATION,
    RESPONSES,
    ROLLOUTS,
    ROUNDED,
    RunDir,
    refuse_links,
    round_name,
)
from genius_lite.rundir.lines import Lines, read_records, write_records
from genius_lite.rundir.reader import RunFolder
from genius_lite.weights.importing import FULL_PRECISION

_EVALUATION, _ANSWERS = f"{round_name(0)}/{EVALUATION}", f"{round_name(0)}/{ANSWERS}"
_ROLLOUTS = f"{round_name(1)}/{ROLLOUTS}"

_ROUNDED_BASE, _ITS_ANSWERS = f"{ROUNDED}/{BASELINE}", f"{ROUNDED}/{EVALUATION}"

_BASE = ("model", "weights")
_ANSWERED = ("model", "seed", "system", "tasks", "foresight.max_tokens", "evaluate", "sampler.kv_type")
_SAMPLED = ("model", "seed", "foresight", "sampler.kv_type")
_ROUNDED = (*_BASE, "quantize.type")
_WHOLE = {
    FULL_PRECISION: _BASE,
    CHECKPOINT: _BASE,
    _EVALUATION: (*_ANSWERED, "watched"),
    # The base in the types of the rounds; how it was rounded depends a little on what was learned from.
    _ROUNDED_BASE: _ROUNDED,
}
_NO_PART = {"rollback", "patience", "sweep"}  # of `evaluate`: they decide what follows, not what is asked
_OF_QUERIES = {"queries", "query_samples"}  # of `evaluate`: no part in what the tasks are answered


def copy_stages(folder: RunDir, identity: dict[str, Any], queries: Sequence[Query], other: Path) -> list[str]:
    """Link or copy into a run's folder what `other` has that would come out the same and is not there yet.

    Finished files are never written again, so links do; logs are copied, which grow.

    Args:
        identity: of the run.
        queries: of the run; rollouts of these are taken.

    Returns:
        The names of what was taken, and how many of the queries where it is not all.

    Raises:
        UserError: `other` is no run folder, has a link in it, or a damaged line.
    """
    theirs = RunFolder(other).recipe
    refuse_links(other)

    def same(keys: Sequence[str], apart: set[str] = _NO_PART) -> bool:
        return all(_at(theirs, key, apart) == _at(identity, key, apart) for key in keys)

    taken = [name for name, keys in _WHOLE.items() if same(keys) and _copy(folder, name, other)]
    if _ROUNDED_BASE in taken and same((*_ROUNDED, *_ANSWERED, "watched")) and _copy(folder, _ITS_ANSWERS, other):
        taken.append(_ITS_ANSWERS)  # never beside a base that this run rounded itself
    if same(_ANSWERED, _NO_PART | _OF_QUERIES) and _copy_answers(folder, other):
        taken.append("answers to the tasks")
    if same(_SAMPLED) and (count := _copy_rollouts(folder, queries, other)):
        taken.append("rollouts" if count == len(queries) else f"rollouts of {count} of {len(queries)} queries")
    return taken


def _at(identity: dict[str, Any], dotted: str, apart: set[str]) -> Any:
    found: Any = identity
    for key in dotted.split("."):
        found = (found or {}).get(key)
    return {key: value for key, value in found.items() if key not in apart} if dotted == "evaluate" else found


def _copy(folder: RunDir, name: str, other: Path) -> bool:
    """A finished stage, a file or a folder, by links; whether there was one to bring."""
    source = other / name
    if not source.exists() or (folder / name).exists():
        return False

    def link(out: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, out, copy_function=_link)
        else:
            _link(str(source), str(out))

    folder.build(name, link)
    return True


def _copy_answers(folder: RunDir, other: Path) -> bool:
    """The base model's answers, where its evaluation is still to be made; whether there were any to bring."""
    there = (folder / _EVALUATION).exists() or (folder / _ANSWERS).exists()
    file = other / _EVALUATION / RESPONSES
    responses = [] if there or not file.exists() else read_records(file, Response)
    if responses:
        each = groupby(responses, key=lambda response: (response.task, response.problem))
        answers = (Answers(*asked, [*given]) for asked, given in each)
        folder.build(_ANSWERS, lambda out: write_records(out, answers))
    return bool(responses)


def _copy_rollouts(folder: RunDir, queries: Sequence[Query], other: Path) -> int:
    """Those of the queries that `other` searched from the same prompt; how many there were."""
    source = other / _ROLLOUTS
    if not source.exists() or (folder / _ROLLOUTS).exists():
        return 0
    own = {query.id: query for query in queries}
    searched = Lines(source, Rollout)
    shared = [n for n, query in enumerate(searched.query_ids()) if query in own and searched[n].query == own[query]]
    if shared:
        folder.build(_ROLLOUTS, lambda out: write_records(out, searched.pick(shared)))
    return len(shared)


def _link(source: str, out: str) -> None:
    """A second name of the same file, or a copy where the file systems differ or know no links."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copyfile(source, out)
