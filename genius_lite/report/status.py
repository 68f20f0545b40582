"""Where a run stands, from its folder alone, once or until it ends: it goes on, or why it does not."""

from __future__ import annotations

import platform
import shlex
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.segment import SegmentLines

from genius_lite.evaluate.guard import guard_status
from genius_lite.evaluate.record import read_scores
from genius_lite.evaluate.results import mean_score
from genius_lite.evaluate.selection import RoundScore, select_checkpoint
from genius_lite.progress import Stage
from genius_lite.recipe import Evaluate, Guard
from genius_lite.records import prepared
from genius_lite.report.columns import table_row
from genius_lite.report.state import RunState, Work
from genius_lite.report.summary import verdict
from genius_lite.report.view import MOST_LINES, State, counted, is_lively, live_lines, view
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.disk import is_alive
from genius_lite.rundir.folder import PROGRESS
from genius_lite.rundir.lock import in_use
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import in_ascii

_WATCHING = "Ctrl-C ends this view, not the run; *: best so far"
_WATCH_EVERY, _LINE_EVERY = 1.0, 15.0  # seconds


class Status(msgspec.Struct, frozen=True):
    """A run's state and what that means, what it shows, the exported model if there is one, and damaged files.

    `verdict` says of a run that has ended whether its answers became better.
    """

    state: State
    meaning: str
    exported: str | None
    board: RunState
    damaged: list[str] = []
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Make a dict for JSON: the board's parts stand beside the state, and of the values their number and mean."""
        found = msgspec.to_builtins(self)
        board, shown = found.pop("board"), self.board.values
        del board["values"], board["ended"], board["stuck"]
        return found | board | {"values": shown.count, "mean_value": shown.mean if shown.count else None}


def look(path: Path) -> Status:
    """Read where the run stands now; nothing of it is changed, and what is being written is left out.

    Raises:
        UserError: this is no run folder, or another version's.
    """
    run = RunFolder(path)
    run.require("rounds")
    kept, shard = read_state(path), run.shard
    board = kept or RunState()
    moved = Path(board.out).absolute() != path.absolute()
    board.out, board.rounds, board.queries = str(path), run.recipe["rounds"], run.queries
    board.shard = shard is not None
    reports = run.reports
    board.rows = _rows(run, reports, board)
    if reports:
        board.lights = guard_status(recorded_guard(run.recipe), reports[-1], run.base.signals)
    going_on = _held(path, kept)
    if not going_on:
        board.work = board.memory = board.run_left = None
        board.stopping = False
    if not going_on or not kept:
        board.number, board.kind = next_stage(run)
        if board.kind in (Stage.ROLLOUTS, Stage.PAIRS):
            here = run.round(board.number)
            board.work = Work("rollouts", "queries", run.searched, len(here.rollouts) + len(here.failed))
        board.best = _best(run, reports, board.rounds)
    exported, damaged = next(map(str, run.exported), None), run.damaged
    if going_on:
        return Status("running", "it stops soon" if board.stopping else "it goes on", exported, board, damaged)
    if summary := run.summary:
        state, meaning = "halted" if summary.halted else "finished", summary.stopped or "all is done"
        return Status(state, meaning, exported, board, damaged, verdict(summary))
    if shard and board.work and board.work.done == board.work.total:
        whose = f"all queries of its part, {shard.part}; genius-lite merge-shards adds them to the run"
        return Status("finished", whose, None, board, damaged)
    why = board.ended or ("its process is gone" if kept else "no process works on it")
    if board.stuck:
        return Status("failed", why, exported, board, damaged)
    # Without it the command would begin anew where the folder lay then; of two the last one counts.
    here_now = f" --out {shlex.quote(str(path))}" if moved else ""
    how = f": {board.command}{here_now}" if _is_ours(board.command) else ""
    return Status("interrupted", f"{why}; the same command goes on from here{how}", exported, board, damaged)


def _is_ours(command: str) -> bool:
    """Say whether a command is this program's and no more: a stranger's folder may name another one for pasting."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:1] == ["genius-lite"] and shlex.join(words) == command


def print_status(status: Status, console: Console) -> None:
    console.print(f"{status.state}: {status.meaning}", soft_wrap=True)
    if status.verdict:
        console.print(in_ascii(status.verdict), soft_wrap=True)
    console.print()
    hint = "*: best so far" if status.board.rows else ""
    lines = view(status.board, hint, console, MOST_LINES, status.state)
    console.print(SegmentLines(lines, new_lines=True))
    if status.exported:
        console.print(f"exported: {status.exported}", soft_wrap=True)
    if status.damaged:
        console.print(f"damaged, and passed over: {', '.join(status.damaged)}", soft_wrap=True)


def watch(run: Path, console: Console) -> Status:
    """Show a run that another process works on, live or in lines, until it ends; its last status.

    Raises:
        UserError: this is no run folder.
    """
    shown, last = "", 0.0
    with live_lines(console) if is_lively(console) else nullcontext() as draw:
        while (status := look(run)).state == "running":
            board, now = status.board, time.monotonic()
            where = f"round {board.number}: {board.kind}" if board.number else str(board.kind)
            if draw:
                draw(view(board, _WATCHING, console, console.height - 1))
            elif where != shown or now - last >= _LINE_EVERY:
                shown, last = where, now
                console.print(f"{where}: {counted(board.work)}" if board.work else where, soft_wrap=True)
            time.sleep(_WATCH_EVERY)
    return status


def read_state(run: Path) -> RunState | None:
    """Read what the run's process has left; None where there is nothing, or another version's."""
    try:
        return msgspec.json.decode((run / PROGRESS).read_bytes(), type=prepared(RunState))
    except (OSError, msgspec.DecodeError, RecursionError):
        return None


def _rows(run: RunFolder, reports: list[RoundReport], board: RunState) -> list[dict[str, Any]]:
    """Gather the figures of the base model, as far as it is measured, and of the finished rounds."""
    kept = (row.get("score") for row in board.rows if row.get("round") == 0)  # as its process, or somebody, left it
    base = [table_row(RoundReport(0, score=score)) for score in kept if isinstance(score, int | float | None)]
    if reports:
        base = [table_row(RoundReport(0, score=reports[0].base_score))]
    elif not base and run.base.done(Stage.EVALUATE):
        base = [table_row(RoundReport(0, score=mean_score(read_scores(run.base))))]
    return base + [table_row(report) for report in reports]


def _best(run: RunFolder, reports: list[RoundReport], rounds: int) -> int | None:
    """Say the best round; of a run that was killed before it came to say, by the files of those that are finished."""
    if run.best is not None:
        return run.best
    if not run.base.done(Stage.EVALUATE):
        return None
    found = [(0, False), *((report.round, report.halted) for report in reports)]
    standings = [RoundScore(number, read_scores(run.round(number), run.base), halted) for number, halted in found]
    return select_checkpoint(Evaluate(), rounds, standings).best


def recorded_guard(recipe: dict[str, Any]) -> Guard:
    """Read the guard's limits; the usual ones where another version wrote them."""
    try:
        return Guard.model_validate(recipe.get("guard", {}))
    except ValidationError:  # of another version
        return Guard()


def _held(run: Path, board: RunState | None) -> bool:
    """Say whether a process works on the run: the one of the board is alive, and the lock is held."""
    if board and board.host == platform.node() and not is_alive(board.pid):
        return False
    try:
        return in_use(run)
    except PermissionError:  # somebody else's run, which only its process can tell of
        return board is not None


def next_stage(run: RunFolder) -> tuple[int, Stage]:
    """Find the round and the stage that comes next, of a run that is not finished."""
    if run.shard:
        return run.shard.round, Stage.ROLLOUTS
    if not run.imported:
        return 0, Stage.IMPORT
    if not run.own.done(Stage.EVALUATE):
        return 0, Stage.EVALUATE
    here = run.rounds[-1] if run.rounds else run.round(1)
    if run.best is not None:  # a round that found no pair to learn from may follow the last that was made
        return max((report.round for report in run.reports), default=0), Stage.EXPORT
    if here.report:
        more = here.number < run.recipe["rounds"]
        return (here.number + 1, Stage.ROLLOUTS) if more else (here.number, Stage.EXPORT)
    if not here.done(Stage.PAIRS):
        return here.number, Stage.ROLLOUTS if len(here.rollouts) + len(here.failed) < run.searched else Stage.PAIRS
    missing = (stage for stage in (Stage.TRAIN, Stage.MERGE) if not here.done(stage))
    return here.number, next(missing, Stage.EVALUATE)
