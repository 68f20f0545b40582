"""Rollouts of a part of a recipe's queries, for people who carry files between machines, and their way into a run.

A shard is a folder like a run's, of one stage. Every n-th query belongs to it, and is sampled as the run itself would:
generators are named by the query, not by who asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from genius_lite.errors import Stop, UserError
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.round import Policy, Session
from genius_lite.pipeline.stages import sample
from genius_lite.progress import Progress
from genius_lite.recipe import Recipe, Tracking
from genius_lite.records import FailedQuery, Rollout
from genius_lite.report.tracking import tracked
from genius_lite.rundir.folder import (
    CHECKPOINT,
    FAILED_FILE,
    LORA,
    POLICY,
    RECIPE,
    ROLLOUTS,
    RunDir,
    open_folder,
    refuse_links,
    round_name,
)
from genius_lite.rundir.lines import Lines, RecordLog
from genius_lite.rundir.reader import RoundFolder
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.untrusted import load_untrusted

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """The `number`-th of so many parts, from 1."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Of `2/5`.

        Raises:
            UserError: it is none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"--shard {text}: write I/N, as 1/4 for the first of four")
        return Shard(int(found[1]), int(found[2]))


def sample_shard(
    recipe: Recipe, shard: Shard, number: int, model: Path | None, progress: Progress, stop: Stop
) -> tuple[Path, int]:
    """Sample a shard of a round; the folder, which goes on after an interruption, and its rollouts.

    Args:
        number: of the round, from 1.
        model: the GGUF that the run samples this round from; None is the recipe's own, for the first round.

    Raises:
        Stopped: `stop` was asked for.
        UserError: as `prepare`; a later round without its model; a shard without queries; a folder of another shard.
    """
    if (number == 1) != (model is None):
        raise UserError(
            f"round {number} is sampled from what the round before made: name the run's policy.gguf with --model"
            if model is None
            else "--model is for rounds after the first, which is sampled from the recipe's own"
        )
    job = prepare(recipe)
    identity = job.identity()
    sampled_from = sha256([model]) if model else identity["model"]
    identity["shard"] = {"part": f"{shard.number}/{shard.of}", "round": number, "model": sampled_from}
    part = job.searched[shard.number - 1 :: shard.of]
    if not part:
        raise UserError(f"shard {shard.number}/{shard.of} is empty: {len(job.searched)} queries are searched")
    out = Path(f"{recipe.out}-shard-{shard.number}-of-{shard.of}")
    untracked = recipe.model_copy(update={"tracking": Tracking()})
    with open_folder(out, identity) as folder, tracked(untracked, folder.path) as tracker:
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        nothing_imported = Base(job.source, folder / CHECKPOINT)
        session = Session(replace(job, queries=part), nothing_imported, engine, folder, progress, stop, tracker)
        policy = Policy(load_untrusted(model).path if model else job.source.path)
        return folder.path, len(sample(session.round(number), policy))


def merge_shards(out: Path, shards: Sequence[Path], say: Callable[[str], None]) -> int:
    """Add what shards hold to a run, which may be new; its queries of that round that are over then.

    A query that the run has already stays as it is, so shards may overlap, and be merged twice.

    Raises:
        UserError: a folder is no shard, or of another recipe, model or round than the run or the first shard.
    """
    common, where = _identity_of(shards[0])
    for shard in shards:
        if _identity_of(shard) != (common, where):
            raise UserError(f"{shard} and {shards[0]} are of different recipes, models or rounds; nothing was merged")
    number = where["round"]
    with open_folder(out, common) as folder:
        if number > 1:
            _require_model(folder, number, where["model"])
        here = folder.round(number)
        log, failures = RecordLog(here / ROLLOUTS, Rollout), RecordLog(here / FAILED_FILE, FailedQuery)
        over = {*log.records.query_ids(), *failures.records.query_ids()}
        for shard in shards:
            before = len(over)
            there = RoundFolder(number, shard / round_name(number))
            _add(log, there.rollouts, over)
            _add(failures, there.failed, over)
            say(f"{shard}: {len(over) - before} queries of round {number} are new")
        log.close()
        failures.close()
        return len(over)


def _add(log: RecordLog[T], records: Lines[T], over: set[str]) -> None:
    """Append the records whose queries are not over yet."""
    for query, record in zip(records.query_ids(), records, strict=True):
        if query not in over:
            log.append(record)
            over.add(query)


def _identity_of(shard: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the run that a shard is for; and the round and the model that it was sampled from, whichever part it is."""
    recorded = shard / RECIPE
    identity = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    if "shard" not in identity:
        raise UserError(f"{shard} is no shard; genius-lite sample RECIPE --shard I/N makes one")
    refuse_links(shard)
    where = identity.pop("shard")
    del where["part"]
    return identity, where


def _require_model(folder: RunDir, number: int, expected: str) -> None:
    """Refuse rollouts that another policy sampled than the one that the run has made for this round."""
    made, beside = (folder / round_name(number - 1) / name for name in (POLICY, LORA))
    if beside.exists():
        raise UserError(
            f"{folder.path} samples round {number} with an adapter at run time, which shards cannot; run it where it is"
        )
    if not made.is_file():
        raise UserError(f"{folder.path} has no model for round {number} yet; merge when round {number - 1} is finished")
    if sha256([made]) != expected:
        raise UserError(f"these shards were sampled from another model than {made}; nothing was merged")
