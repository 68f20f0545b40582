"""The whole program: each round the policy answers, foresees, learns from what it prefers, and answers again.

    recipe -> queries -> rollouts -> pairs -> adapter -> merged GGUF -> evaluation -> next round -> export

Everything below happens in a run folder whose stages are built once. To go on after an interruption, run the
same recipe again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.evaluate.best import Standing, course
from genius_lite.evaluate.cooling import Cooled, beside
from genius_lite.evaluate.guard import Watched, alarms, watch
from genius_lite.evaluate.record import Evaluation, read_responses
from genius_lite.evaluate.results import mean_score
from genius_lite.export.bundle import export
from genius_lite.job import Job, prepare
from genius_lite.learner.team import ALONE, Team
from genius_lite.plan.history import cut_off, drop_rehearsal
from genius_lite.plan.lengths import too_short
from genius_lite.plan.plan import forecast
from genius_lite.plan.suggestions import require_room
from genius_lite.recipe import Recipe
from genius_lite.records import PreferencePair, Rollout
from genius_lite.report.board import Board, Row, guard_lights, round_row
from genius_lite.report.progress import Progressor
from genius_lite.report.summary import cooling_lines, evaluation_lines, round_report
from genius_lite.report.tracking import tracked
from genius_lite.report.write import write_report
from genius_lite.reuse import take
from genius_lite.round import Policy, Round
from genius_lite.rundir import OpenRun
from genius_lite.stages import baseline, cool, evaluate, import_base, next_policy, pair, sample, to_sample, train
from genius_lite.stopping import Stop
from genius_lite.tuning import engine_settings


def run(
    recipe: Recipe,
    progress: Progressor | None = None,
    stop: Stop | None = None,
    reuse: Path | None = None,
    anyway: bool = False,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Self-train the recipe's model; returns the summary that is also in the folder's `summary.json`.

    `halted` in it says that the collapse guard ended the run early; the best round before is exported all the same.

    Args:
        progress: where the run is shown; nothing is if not given.
        stop: may be asked for, from another thread, at any time; the run then ends where it loses nothing.
        reuse: another run's folder, from which the stages are taken that would come out the same.
        anyway: do not refuse what cannot fit this machine's memory or disk.
        team: the processes that train together; this one leads them.

    Raises:
        Stopped: `stop` was asked for.
        UserError: as `prepare` and `require_room`; or the folder cannot be used; or the queries gave no pair to learn
            from.
    """
    job = prepare(recipe)
    identity = job.identity()
    drop_rehearsal(Path(recipe.out), identity)
    if not anyway:
        require_room(job, identity, reuse)
    progress, stop = progress or Progressor(Console(quiet=True)), stop or Stop()
    with (
        OpenRun(Path(recipe.out), identity) as folder,
        progress.showing(_board(job, folder.path)),
        tracked(recipe, folder.path) as tracker,
    ):
        for name in take(folder, identity, job.searched, reuse) if reuse else []:
            progress.say(f"taken from {reuse}: {name}")
        progress.enter(0, "import")
        base = import_base(job, folder, progress)
        for note in (job.quantized_twice, cut_off(job)):
            if note:
                progress.say(f"warning: {note}")
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        start = Round(0, job, base, engine, folder, progress, stop, tracker)
        policies = [Policy(job.source.path)]  # what each round leaves to sample from; the first is the user's own file
        own = evaluate(start, policies[0])
        for line in evaluation_lines(own):
            progress.say(f"base model: {line}")
        if own.signals and (note := too_short(1 - own.signals.ended, recipe.answer_tokens)):
            progress.say(f"warning: {note}")
        standings, reports = [Standing(0, own.scores)], []
        where = course(recipe.evaluate, recipe.rounds, standings)
        tracker.base(own)
        progress.finished(Row(0, mean_score(own.scores)), {}, where.best)
        for number in range(1, recipe.rounds + 1):
            r = Round(number, job, base, engine, folder, progress, stop, tracker, team)
            policy, against, standing, report = _round(r, start, policies[where.build_on], reports)
            policies.append(policy)
            standings = [against, *standings[1:], standing]
            reports.append(report)
            where = course(recipe.evaluate, recipe.rounds, standings)
            tracker.round(report)
            progress.finished(Row(0, mean_score(against.scores)), {}, where.best)
            progress.finished(round_row(report), guard_lights(recipe.guard, report), where.best)
            if where.stop:
                progress.say(f"stopped: {where.stop}")
                break
        stop.check()
        progress.enter(len(reports), "export")
        folder.build_json("best.json", lambda: {"round": where.best, "stopped": where.stop})
        exported = folder.build("export", lambda out: export(folder.path, where.best, "gguf", [], out))
        summary = {
            "out": str(folder.path),
            "exported": str(next(exported.glob("*.gguf"))),
            "best": where.best,
            "stopped": where.stop,
            "halted": where.halted,
            "queries": len(job.queries),
            "duplicates_dropped": job.duplicates,
            "rounds": reports,
        }
        summary = folder.build_json("summary.json", lambda: summary)
        _write_report(folder.path, progress)
        return summary


def _write_report(run: Path, progress: Progressor) -> None:
    """Written anew whenever a run ends, and by nothing missed if it cannot be."""
    try:
        write_report(run, run)
    except (UserError, OSError) as e:
        progress.say(f"warning: no report ({e}); genius-lite report {run} tries again")


def _board(job: Job, out: Path) -> Board:
    """What is known of the run before it begins."""
    return Board(
        out=str(out),
        model=job.source.path.name,
        queries=len(job.queries),
        rounds=job.recipe.rounds,
        forecast=forecast(job),
        pid=os.getpid(),
        host=platform.node(),
        started=time.time(),
    )


def _round(
    r: Round, start: Round, policy: Policy, earlier: list[dict[str, Any]]
) -> tuple[Policy, Standing, Standing, dict[str, Any]]:
    """One self-training iteration: what to sample from next, how good base and round are, and what happened."""
    rollouts = sample(r, policy)
    pairs = pair(r, rollouts)
    adapter = train(r, policy.adapter, rollouts, pairs)
    base = baseline(start, adapter)
    against, cooled = evaluate(start, base), cool(start, base)
    tuned = next_policy(r, adapter, pairs)
    found = evaluate(r, tuned)
    report = r.here.build_json("report.json", lambda: _report(r, rollouts, pairs, found, against, cooled, earlier))
    halted = any(alarm["level"] == "halt" for alarm in report["alarms"])
    return to_sample(r, tuned), Standing(0, against.scores), Standing(r.number, found.scores, halted), report


def _report(
    r: Round,
    rollouts: Sequence[Rollout],
    pairs: list[PreferencePair],
    found: Evaluation,
    against: Evaluation,
    cooled: Cooled | None,
    earlier: list[dict[str, Any]],
) -> dict[str, Any]:
    """The round's figures, and what the collapse guard says of them; both are shown too."""
    report = round_report(r.number, rollouts, pairs, r.here.path)
    training = report["training"]
    watched = watch(found.signals, rollouts, pairs, training["accuracy"], training["margin"])
    first = msgspec.convert(earlier[0]["watched"], Watched) if earlier else None
    raised = alarms(r.job.recipe.guard, watched, against.signals, first)
    at_best = beside(cooled, read_responses(r.run.path, r.number), r.job.recipe.rounds) if cooled else []
    said = [*evaluation_lines(found), *cooling_lines(at_best), *(f"{alarm.level}: {alarm.line}" for alarm in raised)]
    for line in said:
        r.progress.say(f"round {r.number}: {line}")
    scores = {"score": mean_score(found.scores), "base_score": mean_score(against.scores)}
    shown = {**scores, "evaluation": found.tasks, "at_best": at_best, "watched": watched, "alarms": raised}
    return {**report, **msgspec.to_builtins(shown)}
