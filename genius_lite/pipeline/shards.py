"""Rollouts of a part of a recipe's queries, for people who carry files between machines, and their way into a run.

A shard is a folder like a run's, of one stage. Every n-th query belongs to it, and is sampled as the run itself would:
generators are named by the query, not by who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genius_lite.errors import Stop, UserError
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.round import Policy, Session
from genius_lite.pipeline.stages import sample
from genius_lite.progress import Progress
from genius_lite.recipe import Recipe, Tracking
from genius_lite.records import FailedQuery, Rollout
from genius_lite.report.tracking import Tracker
from genius_lite.rundir import folder
from genius_lite.rundir.checks import check_rollouts
from genius_lite.rundir.documents import RecordedOrigin, read_typed
from genius_lite.rundir.folder import RunDir, open_folder, round_name
from genius_lite.rundir.lines import RecordLog
from genius_lite.rundir.reader import RoundFolder, RunFolder
from genius_lite.weights.gguf_file import sha256
from genius_lite.weights.importing import Base
from genius_lite.weights.untrusted import load_untrusted


def sample_shard(
    recipe: Recipe, shard: str, number: int, model: Path | None, progress: Progress, stop: Stop
) -> tuple[Path, int]:
    """Sample a shard of a round; return its folder, which goes on after an interruption, and how many rollouts it has.

    Args:
        shard: which of how many parts, from 1: `2/5`.
        model: the GGUF that the run samples this round from; None is the recipe's own, for the first round.

    Raises:
        Stopped: `stop` was asked for.
        UserError: as `prepare`; no such part; a later round without its model; a shard without queries; a folder of
            another shard.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if not found or not 1 <= (which := int(found[1])) <= (of := int(found[2])):
        raise UserError(f"--shard {shard}: write I/N, as 1/4 for the first of four")
    if number > 1 and not model:
        raise UserError(
            f"round {number} is sampled from what an earlier round made: name the run's policy.gguf with --model"
        )
    if number == 1 and model:
        raise UserError("--model is for rounds after the first, which is sampled from the recipe's own")
    job = prepare(recipe)
    if (today := job.template.get("today")) and "today" not in recipe.queries.template:
        raise UserError(
            "the model's chat template writes the date, and all machines must write the same one: write "
            f'queries.template: {{today: "{today}"}}'
        )
    sampled_from = sha256([model]) if model else job.identity["model"]
    origin = {"part": f"{which}/{of}", "round": number, "model": sampled_from}
    searched = job.searched(number)
    part = searched[which - 1 :: of]
    if not part:
        raise UserError(f"shard {which}/{of} is empty: {len(searched)} queries are searched")
    later = f"-round-{number}" if number > 1 else ""
    out = Path(f"{Path(recipe.out)}{later}-shard-{which}-of-{of}")  # a slash at the end of `out` goes
    whole = recipe.model_copy(update={"tracking": Tracking(), "round_queries": None})
    with open_folder(out, job.identity | {"shard": origin}) as run:
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        nothing_imported = Base(job.source, run / folder.CHECKPOINT)
        of_part = replace(job, recipe=whole, queries=part)
        session = Session(of_part, nothing_imported, engine, run, progress, stop, Tracker(whole, out))
        policy = Policy(load_untrusted(model).path if model else job.source.path)
        return out, len(sample(session.round(number), policy))


def merge_shards(out: Path, shards: Sequence[Path], say: Callable[[str], None]) -> int:
    """Add what shards hold to a run, which may be new; return how many queries of that round are over then.

    A query that the run has already stays as it is, so shards may overlap, and be merged twice.

    Raises:
        UserError: a folder is no shard, or of another recipe, model or round than the run or the first shard.
    """
    identity, number, model = _identity_of(shards[0])
    for shard in shards:
        if _identity_of(shard) != (identity, number, model):
            raise UserError(f"{shard} and {shards[0]} are of different recipes, models or rounds; nothing was merged")
    parts = [RoundFolder(number, shard / round_name(number)) for shard in shards]
    for part in parts:
        check_rollouts(part.rollouts)
    with open_folder(out, identity) as run:
        if number > 1:
            _require_origin(run, number, model)
        here = run.round(number)
        log, failures = RecordLog(here / folder.ROLLOUTS, Rollout), RecordLog(here / folder.FAILED_FILE, FailedQuery)
        over = {*log.records.query_ids(), *failures.records.query_ids()}
        searched = [log.extend(part.rollouts, over) for part in parts]
        # Last: what one machine did not survive, another one may have searched.
        failed = [failures.extend(part.failed, over) for part in parts]
        for shard, *new in zip(shards, searched, failed, strict=True):
            say(f"{shard}: {sum(new)} queries of round {number} are new")
        log.close()
        failures.close()
        return len(over)


def _identity_of(shard: Path) -> tuple[dict[str, Any], int, str]:
    """Read the identity of the run that a shard is for, and the round and the model that it was sampled from."""
    found = RunFolder(shard)
    if not (origin := found.shard):
        raise UserError(f"{shard} is no shard; genius-lite sample RECIPE --shard I/N makes one")
    return {key: value for key, value in found.recipe.items() if key != "shard"}, origin.round, origin.model


def _require_origin(run: RunDir, number: int, model: str) -> None:
    """Refuse rollouts of another policy than the one that the run samples this round from, as it noted at its start."""
    origin = read_typed(run / round_name(number) / folder.ORIGIN, RecordedOrigin)
    if not origin:
        raise UserError(f"{run.path} has not begun round {number}; merge when it has, and was stopped")
    if not origin.model:
        raise UserError(
            f"{run.path} samples round {number} with an adapter at run time, which shards cannot; run it where it is"
        )
    if origin.model != model:
        made = (here.policy for here in RunFolder(run.path).rounds if here.number < number and here.policy.exists())
        file = next((file for file in made if sha256([file]) == origin.model), "the model's own file")
        raise UserError(
            f"these shards were sampled from another model than {file}, from which the run samples round {number}; "
            "nothing was merged"
        )
