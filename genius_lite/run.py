"""The whole program: each round the policy answers, foresees, learns from what it prefers, and answers again.

    recipe -> queries -> rollouts -> pairs -> adapter -> merged GGUF -> evaluation -> next round -> export

It happens in a run folder whose stages are built once. To go on after an interruption, run the same recipe again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from genius_lite.errors import NoPairError, Stop
from genius_lite.export.bundle import export
from genius_lite.learner.process_group import SINGLE_PROCESS, ProcessGroup
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.pipeline.evaluation import evaluate
from genius_lite.pipeline.history import History
from genius_lite.pipeline.job import prepare, require_optimizer
from genius_lite.pipeline.reuse import copy_stages
from genius_lite.pipeline.round import Policy, Round, Session
from genius_lite.pipeline.stages import evaluate_base, import_base, next_policy, pair, sample, train
from genius_lite.plan.fit import require_room
from genius_lite.plan.history import cut_off, drop_rehearsal
from genius_lite.plan.plan import forecast
from genius_lite.progress import Progress, Stage
from genius_lite.recipe import Recipe
from genius_lite.report.page import write_report_if_possible
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.tracking import Tracker
from genius_lite.results.rounds import Summary
from genius_lite.rundir.folder import BEST, EXPORT, SUMMARY, open_folder


def run(
    recipe: Recipe,
    progress: Progress | None = None,
    stop: Stop | None = None,
    reuse: Path | None = None,
    force: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Summary:
    """Self-train the recipe's model.

    `halted` in the summary: the collapse guard ended the run early; the best round before is exported all the same.

    Args:
        progress: where the run is shown; nothing is if not given.
        stop: may be asked for, from another thread, at any time; the run then ends where it loses nothing.
        reuse: another run's folder, from which the stages are taken that would come out the same.
        force: do not refuse what cannot fit this machine's memory or disk.
        group: the processes that train together; this one leads them.

    Raises:
        Stopped: `stop` was asked for.
        UserError: as `prepare` and `require_room`; or the folder cannot be used; or the first round's queries gave no
            pair to learn from. Where a later round's give none, or fewer than `pairs.at_least`, the run ends with what
            was made before.
    """
    with open_run(recipe, progress, stop, reuse, force, group) as session:
        history = History(session)
        history.add_base(evaluate(session.round(0), session.own))
        while policy := history.next_policy():
            try:
                train_round(session.round(history.next), policy, history)
            except NoPairError as e:
                history.end(e)
        return finish(session, history, force)


def train_round(r: Round, policy: Policy, history: History) -> None:
    """One self-training iteration: what the policy prefers becomes the next policy."""
    rollouts = sample(r, policy)
    pairs = pair(r, rollouts)
    adapter = train(r, policy.adapter, rollouts, pairs)
    base = evaluate_base(r, adapter)  # in the types that the tuned model gets
    tuned = next_policy(r, adapter, pairs)
    history.add(r, rollouts, pairs, base, tuned, evaluate(r, tuned))


def finish(session: Session, history: History, force: bool = False) -> Summary:
    """Export the best round, and write the summary and the report; `force` as of `run`."""
    session.stop.check()
    folder, job, decision = session.run, session.job, history.decision
    session.progress.enter(len(history.reports), Stage.EXPORT)
    folder.build_json(BEST, lambda: {"round": decision.best, "stopped": decision.stop})
    exported = folder.build(EXPORT, lambda out: export(folder.path, decision.best, "gguf", [], out, force=force))
    summary = Summary(
        out=str(folder.path),
        exported=str(next(exported.glob("*.gguf"))),
        best=decision.best,
        stopped=decision.stop,
        halted=decision.halted,
        queries=len(job.queries),
        duplicates_dropped=job.duplicates,
        rounds=history.reports,
    )
    folder.build_json(SUMMARY, lambda: summary)
    write_report_if_possible(folder.path, session.progress)
    return summary


@contextmanager
def open_run(
    recipe: Recipe,
    progress: Progress | None = None,
    stop: Stop | None = None,
    reuse: Path | None = None,
    force: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[Session]:
    """Hold the recipe's run folder, with the model imported; the arguments are those of `run`.

    The stages (`genius_lite.pipeline.stages`) take `session.round(number)`, as in `train_round`. What a stage made is
    kept in the folder, and calling it again reads it. Round 0 is the base model.

    Raises:
        UserError: as `run`.
    """
    progress, stop = progress or TerminalProgress(Console(quiet=True)), stop or Stop()
    progress.say("reading the model and the questions")
    job = prepare(recipe, reuse)
    require_optimizer(recipe)
    out = Path(recipe.out)
    if drop_rehearsal(out, job.identity):
        progress.say(
            "the plan in this folder was of other settings and is dropped: times are told from the first round on"
        )
    if not force:
        require_room(job, reuse)
    with (
        open_folder(out, job.identity) as folder,
        progress.showing(out, job.source.path.name, len(job.queries), recipe.rounds, forecast(job)),
        closing(Tracker(recipe, out)) as tracker,
    ):
        for name in copy_stages(folder, job.identity, job.searched(1), reuse) if reuse else []:
            progress.say(f"taken from {reuse}: {name}")
        progress.enter(0, Stage.IMPORT)
        base = import_base(job, folder, progress)
        for note in job.notes:
            progress.say(note)
        # Where the base model answers held-out queries, these answers tell how many are cut off (`History.add_base`).
        for note in (job.quantized_twice, None if job.watched else cut_off(job)):
            if note:
                progress.say(f"warning: {note}")
        engine = engine_settings(recipe.sampler, job.source, job.context, progress)
        yield Session(job, base, engine, folder, progress, stop, tracker, group)
