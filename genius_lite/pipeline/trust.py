"""What stages find in the run's folder already: another process made it, or a stranger, so it is checked before use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.pipeline.round import Round
from genius_lite.records import FailedQuery, PreferencePair, Rollout
from genius_lite.rundir import folder
from genius_lite.rundir.checks import check_pairs, check_rollouts
from genius_lite.rundir.lines import Lines
from genius_lite.rundir.reader import RoundFolder
from genius_lite.text import brief
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import IMATRIX_FILE, Matrix, importance_for
from genius_lite.weights.full_precision import read_config
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.gguf_header import shown
from genius_lite.weights.importing import Base
from genius_lite.weights.untrusted import is_vouched


def trust_searches(r: Round, rollouts: Lines[Rollout], failures: Lines[FailedQuery]) -> None:
    """Check what was searched before, as long as it is to be learned from, and say how many queries were set aside.

    Once there is an adapter, it has learned from the rollouts, or not.

    Raises:
        UserError: a rollout, or a query that was set aside, is not of this run.
    """
    if (r.here / folder.ADAPTER).exists():
        return
    own = {q.id: q for q in r.queries}
    check_rollouts(rollouts, own, r.job.source.vocabulary)
    if not failures:
        return
    for number, query in enumerate(failures.query_ids(), 1):
        if query not in own:
            raise UserError(f"{failures.path}:{number}: query {brief(query)} is not this run's: delete the line")
    r.progress.say(
        f"warning: {len(failures)} of {len(own)} queries were set aside before; {failures.path} says why, and without "
        "their lines they are sampled again"
    )


def trust_pairs(r: Round, pairs: Path) -> None:
    """Check pairs as long as they are to be learned from.

    Raises:
        UserError: one is not of this run.
    """
    if (r.here / folder.ADAPTER).exists():
        return
    found = Lines(pairs, PreferencePair)
    if not found:
        raise UserError(f"{pairs} is empty; delete it to have pairs made anew")
    check_pairs(found, {q.id: q for q in r.queries}, r.job.source.vocabulary)


def trust_evaluation(r: Round, here: RoundFolder) -> None:
    """Refuse an evaluation in which not every response is, once, that was asked for, or no signals are.

    Raises:
        UserError: it was cut short or changed.
    """
    file = here.path / folder.EVALUATION / folder.FAILED_FILE
    failed = {one.query_id for one in Lines(file, FailedQuery)}
    given = Counter((response.task, response.problem) for response in here.responses)
    each = r.job.recipe.evaluate.samples + r.job.recipe.evaluate.greedy
    asked = {(item.task.name, problem.id): each for item in r.job.tasks for problem in item.task.problems}
    survived = {key: count for key, count in asked.items() if count and key[1] not in failed}
    if survived != {key: count for key, count in given.items() if key[1] not in failed}:
        what = "other responses than were asked for"
    elif r.job.watched and not here.signals and not failed:
        what = "no signals"
    else:
        return
    raise UserError(f"{file.parent} has {what}; delete it to have it made anew")


def trust_policy(made: Path, base: Base, digest: str = "") -> None:
    """Refuse a policy's file that has other tensors than the base. That llama.cpp survives it shows when it is used.

    Args:
        digest: its SHA-256, if it is to be that file and no other.

    Raises:
        UserError: a tensor differs, which is named; or it is another file.
    """
    if is_vouched(made):
        return
    theirs, own = ({t.name: t.shape for t in file.tensors} for file in (gguf_file.read(made), base.gguf))
    if theirs != own:
        name = next(name for name in {**theirs, **own} if theirs.get(name) != own.get(name))
        raise UserError(
            f"{made} was not made of {base.gguf.path}: {shown(name)} differs; delete it to have it made anew"
        )
    if digest and sha256([made]) != digest:
        raise UserError(f"{made} is not the file that this run made; delete it to have it made anew")


def trusted_importance(r: Round) -> Matrix:
    """Read by what importance the base was quantized that rounds are told against; of the user's own nothing is known.

    Raises:
        UserError: the file of it is gone, without which rounds would lose a part of what they learn, or it is wrong.
    """
    file = r.rounded / IMATRIX_FILE
    if r.baseline.gguf != r.base.gguf.path and not file.exists():
        raise UserError(
            f"{file} is gone, by which {r.baseline.gguf.name} beside it was quantized: copy the first round's "
            f"{folder.ADAPTER}/{IMATRIX_FILE} there, or delete {file.parent} to have both made anew"
        )
    return importance_for(r.base, file)


def trust_checkpoint(base: Base) -> None:
    """Refuse a learner's copy of the model that transformers cannot load, or that asks for code.

    Raises:
        UserError: its config or its weights cannot be.
    """
    if not is_vouched(base.hf_checkpoint / "config.json"):
        read_config(base.hf_checkpoint)
