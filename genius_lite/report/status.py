"""Where a run stands, from its folder alone: of one that goes on, was interrupted, or is finished."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import filelock
import msgspec
import psutil
from pydantic import ValidationError
from rich.console import Console

from genius_lite.errors import UserError
from genius_lite.evaluate.best import Standing, course
from genius_lite.evaluate.record import read_evaluation
from genius_lite.evaluate.results import mean_score
from genius_lite.recipe import Evaluate, Guard
from genius_lite.report.board import LAST_STAGE, Board, Row, Work, guard_lights, round_row
from genius_lite.report.reading import complete_lines, read_board, read_json, round_folders
from genius_lite.report.view import MOST_LINES, State, signs_of, view
from genius_lite.rundir import FAILED_FILE


class Status(msgspec.Struct, frozen=True):
    """A run's state and what that means, its board, and the exported model, if there is one."""

    state: State
    meaning: str
    exported: str | None
    board: Board

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the board's parts stand beside the state, and of the values their number and mean."""
        found = msgspec.to_builtins(self)
        board, values = found.pop("board"), self.board.values
        del board["values"], board["ended"]
        return found | board | {"values": values.count, "mean_value": values.mean if values.count else None}


def look(run: Path) -> Status:
    """The run's status now; nothing of it is changed, and what is being written is left out.

    Raises:
        UserError: this is no run folder.
    """
    recipe, summary = read_json(run / "recipe.json"), read_json(run / "summary.json")
    if not isinstance(recipe, dict):
        raise UserError(f"{run} is no run folder; name the `out` of a recipe")
    kept = read_board(run)
    board = kept or Board()
    board.out, board.rounds = str(run), recipe["rounds"]
    board.queries = int(recipe["queries"].partition(",")[0])
    _fill(board, run, recipe)
    going_on = _held(run, kept)
    if not going_on:
        board.work = board.memory = board.run_left = None
        board.stopping = False
    if not going_on or not kept:
        board.number, board.kind = _place(run, board, recipe)
        board.best = _best(run, board)
    exported = next((str(path) for path in sorted((run / "export").glob("*.gguf"))), None)
    if summary and not going_on:
        halted = summary.get("halted", False)
        return Status("halted" if halted else "finished", summary["stopped"] or "all is done", exported, board)
    if going_on:
        return Status("running", "it stops soon" if board.stopping else "it goes on", exported, board)
    why = board.ended or "its process is gone"
    how = f": {board.command}" if board.command else ""
    return Status("interrupted", f"{why}; the same command goes on from here{how}", exported, board)


def print_status(status: Status, console: Console) -> None:
    """The status as lines."""
    console.print(f"{status.state}: {status.meaning}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    for line in view(status.board, "*: best so far", console.width, MOST_LINES, signs_of(console), status.state):
        console.print(line, soft_wrap=True)
    if status.exported:
        console.print(f"exported: {status.exported}", markup=False, highlight=False, soft_wrap=True)


def _fill(board: Board, run: Path, recipe: dict[str, Any]) -> None:
    """What finished rounds say themselves."""
    reports = [report for _, here in round_folders(run) if (report := read_json(here / "report.json"))]
    base = [Row(0, reports[0].get("base_score"))] if reports else [row for row in board.rows if row.round == 0]
    board.rows = (base or _base_row(run)) + [round_row(report) for report in reports]
    if reports:
        board.lights = guard_lights(_guard(recipe), reports[-1])


def _base_row(run: Path) -> list[Row]:
    if not (run / "round-0" / "evaluation").exists():
        return []
    found = read_evaluation(run, 0)
    return [Row(0, mean_score(found.scores))]


def _best(run: Path, board: Board) -> int | None:
    """The best round by the files of those that are finished; what a run that was killed did not come to say."""
    if not board.rows or board.rows[0].round:
        return None
    reports = [read_json(run / f"round-{row.round}" / "report.json") for row in board.rows[1:]]
    halted = {report["round"] for report in reports if any(a["level"] == "halt" for a in report["alarms"])}
    standings = [Standing(r.round, read_evaluation(run, r.round).scores, r.round in halted) for r in board.rows]
    return course(Evaluate(), board.rounds, standings).best


def _guard(recipe: dict[str, Any]) -> Guard:
    try:
        return Guard.model_validate(recipe.get("guard", {}))
    except ValidationError:  # of another version
        return Guard()


def _held(run: Path, board: Board | None) -> bool:
    """Whether a process works on the run: the one of the board is alive, and the lock is held."""
    if board and board.host == platform.node() and not psutil.pid_exists(board.pid):
        return False
    if not (run / "lock").exists():
        return False
    try:
        with filelock.FileLock(run / "lock", timeout=0):
            return False
    except filelock.Timeout:
        return True
    except PermissionError:  # somebody else's run, which only its process can tell of
        return board is not None


def _place(run: Path, board: Board, recipe: dict[str, Any]) -> tuple[int, str]:
    """The round and the stage that comes next; the queries that are searched already become the board's work."""
    if not (run / "hf-checkpoint").exists():
        return 0, "import"
    if not (run / "round-0" / "evaluation").exists():
        return 0, "evaluate"
    number = max(1, round_folders(run)[-1][0])
    here = run / f"round-{number}"
    if (run / "best.json").exists():
        return number, LAST_STAGE
    if (here / "report.json").exists():
        return (number + 1, "rollouts") if number < board.rounds else (number, LAST_STAGE)
    if not (here / "pairs.jsonl").exists():
        from genius_lite.report.gather import searched_count  # it loads llama.cpp, which is seldom needed here

        done = len(complete_lines(here / "rollouts.jsonl")) + len(complete_lines(here / FAILED_FILE))
        board.work = Work("rollouts", "queries", wanted := searched_count(recipe), done)
        return number, "rollouts" if done < wanted else "pairs"
    if not (here / "adapter").exists():
        return number, "train"
    return number, "evaluate" if (here / "policy.gguf").exists() else "merge"
