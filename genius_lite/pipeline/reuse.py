"""Take from another run what this one would make just the same, so that an ablation pays only for what differs.

What decides a stage are some keys of the run's identity (`recipe.json`): where they are equal, so are the random
numbers. Those of a search are its question's own: a run that asks more takes the rollouts of those already searched.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from genius_lite.records import Query, Rollout
from genius_lite.results.evaluation import Answers, Response
from genius_lite.rundir import folder
from genius_lite.rundir.folder import RunDir, refuse_links, round_name
from genius_lite.rundir.lines import RecordLog, read_records, write_records
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.weights.adapter import IMATRIX_FILE
from genius_lite.weights.importing import FULL_PRECISION

_EVALUATION, _ANSWERS = f"{round_name(0)}/{folder.EVALUATION}", f"{round_name(0)}/{folder.ANSWERS}"
_ROUNDED_BASE, _ROUNDED_EVALUATION = f"{folder.ROUNDED}/{folder.BASELINE}", f"{folder.ROUNDED}/{folder.EVALUATION}"
_IMPORTANCE = f"{folder.ROUNDED}/{IMATRIX_FILE}"
_LEFT_OUT, _PAIRS, _ADAPTER = (f"{round_name(1)}/{name}" for name in (folder.LEFT_OUT, folder.PAIRS, folder.ADAPTER))

# Keys of the identity that decide what is answered to the tasks, what is evaluated, what is sampled, and so on.
_BASE = ("model", "weights")
_LIMITS = ("foresight.max_tokens", "foresight.thought_tokens")
_ANSWERED = ("model", "seed", "system", "template", "tasks", *_LIMITS, "evaluate", "sampler.kv_type")
_EVALUATED = (*_ANSWERED, "watched", "answers")
_SAMPLED = ("model", "seed", "foresight", "sampler.kv_type")
# What the first round learns from, and how. What is watched is part of it: that is held out.
_ASKED = ("system", "template", "queries", "answers", "round_queries", "watched")
_TRAINED = (*_SAMPLED, *_BASE, *_ASKED, "pairs", "learner")
_ROUNDED = (*_BASE, "quantize.type", "learner.targets")  # matrices that are adapted may get a type of their own
_DECISIONS = {"rollback", "patience", "sweep"}  # of `evaluate`: they decide what follows, not what is asked
_QUERIES = {"queries", "query_samples"}  # of `evaluate`: no part in what the tasks are answered


def is_imported_alike(identity: dict[str, Any], other: Path) -> bool:
    """Say whether another run's checkpoint is of the same model.

    Raises:
        UserError: `other` is no run folder.
    """
    theirs = RunFolder(other).recipe
    return all(theirs.get(key) == identity.get(key) for key in _BASE)


def copy_stages(run: RunDir, identity: dict[str, Any], queries: Sequence[Query], other: Path) -> list[str]:
    """Link or copy into a run's folder what `other` has that would come out the same and is not there yet.

    Finished files are never written again, so links do; logs are copied, which grow. Identity and queries: the run's.

    Returns:
        The names of what was taken, and how many of the queries where it is not all.

    Raises:
        UserError: `other` is no run folder, has a link in it, or a damaged line.
    """
    theirs = RunFolder(other).recipe
    refuse_links(other)

    def same(keys: Sequence[str], ignored: set[str] = _DECISIONS) -> bool:
        return all(_value(theirs, key, ignored) == _value(identity, key, ignored) for key in keys)

    whole = {FULL_PRECISION: _BASE, folder.CHECKPOINT: _BASE, _EVALUATION: _EVALUATED}
    # A rounded base comes with the importance that it was quantized by, or not at all.
    if same(_ROUNDED) and not (run / _ROUNDED_BASE).exists() and _link_stage(run, _IMPORTANCE, other):
        whole[_ROUNDED_BASE] = _ROUNDED
    taken = [name for name, keys in whole.items() if same(keys) and _link_stage(run, name, other)]
    # An evaluation of the rounded base never comes beside a base that this run rounded itself.
    if _ROUNDED_BASE in taken and same((*_ROUNDED, *_EVALUATED)) and _link_stage(run, _ROUNDED_EVALUATION, other):
        taken.append(_ROUNDED_EVALUATION)
    if same(_ANSWERED, _DECISIONS | _QUERIES) and _copy_answers(run, other):
        taken.append("answers to the tasks")
    if same(_SAMPLED):
        count, whole_round = _copy_rollouts(run, queries, other)
        if count:
            taken.append("rollouts" if count == len(queries) else f"rollouts of {count} of {len(queries)} queries")
        if whole_round and same(_TRAINED) and (other / _ADAPTER).exists():
            # The adapter last: as long as it is missing, pairs are still to be learned from.
            taken += [name for name in (_LEFT_OUT, _PAIRS, _ADAPTER) if _link_stage(run, name, other)]
    return taken


def _value(identity: dict[str, Any], dotted: str, ignored: set[str]) -> Any:
    found: Any = identity
    for key in dotted.split("."):
        found = (found or {}).get(key)
    return {key: value for key, value in (found or {}).items() if key not in ignored} if dotted == "evaluate" else found


def _link_stage(run: RunDir, name: str, other: Path) -> bool:
    """Link a finished stage, a file or a folder, where it is not there yet; say whether there was one."""
    source = other / name
    if not source.exists() or (run / name).exists():
        return False
    run.build(name, lambda out: _link(source, out))
    return True


def _link(source: Path, out: Path) -> None:
    """Give a file, or those of a folder, a second name, or copy it where the file systems differ or know no links.

    Modes are not copied: some file systems have none.
    """
    if source.is_dir():
        out.mkdir()
        for each in source.iterdir():
            _link(each, out / each.name)
        return
    try:
        out.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, out)


def _copy_answers(run: RunDir, other: Path) -> bool:
    """Copy the base model's answers where its evaluation is still to be made; say whether there were any."""
    file = other / _EVALUATION / folder.RESPONSES
    if not file.exists() or (run / _EVALUATION).exists() or (run / _ANSWERS).exists():
        return False
    responses = read_records(file, Response)
    by_problem = groupby(responses, key=lambda response: (response.task, response.problem))
    if responses:
        run.build(_ANSWERS, lambda out: write_records(out, (Answers(*one, [*given]) for one, given in by_problem)))
    return bool(responses)


def _copy_rollouts(run: RunDir, queries: Sequence[Query], other: Path) -> tuple[int, bool]:
    """Copy the rollouts of queries that `other` searched from the same prompt, and this run did not.

    Returns:
        How many there were, and whether the run has those of all queries now, each as `other` has it.
    """
    own, searched = {query.id: query for query in queries}, RoundFolder(1, other / round_name(1)).rollouts
    shared = {rollout.query.id: n for n, rollout in enumerate(searched) if rollout.query == own.get(rollout.query.id)}
    if not shared or (run / _PAIRS).exists() or (run / _ADAPTER).exists():  # what was learned from stays as it was
        return 0, False
    failed = {*RoundFolder(1, run / round_name(1)).failed.query_ids()}
    with closing(RecordLog(run.round(1) / folder.ROLLOUTS, Rollout)) as log:
        there = {query: n for n, query in enumerate(log.records.query_ids())}
        alike = all(query in shared and log.records[n] == searched[shared[query]] for query, n in there.items())
        count = log.extend(searched.pick(shared.values()), there.keys() | failed)
    return count, alike and not failed and shared.keys() == own.keys()
