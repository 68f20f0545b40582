"""A run as a page that is kept up to date: where it stands, its report, and the words and figures of the live part.

Where it stands is read at most every two seconds. Its report, for which whole logs are read, is made in a thread of its
own, when a stage has ended or a log has grown by a tenth. Neither is while nobody looks.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from genius_lite.errors import UserError
from genius_lite.progress import named
from genius_lite.report.gather import gather
from genius_lite.report.page import page
from genius_lite.report.state import Histogram, RunState
from genius_lite.report.status import Status, look
from genius_lite.report.view import at_work, counted, memory_line, run_left
from genius_lite.rundir import folder
from genius_lite.text import number

EVERY = 2.0  # seconds between two looks at a run, at least
_REST = 20  # a report is made again because of a log after so many times as long as it took, at the earliest
_FINE = 8  # sizes of a log between one and its double that count as different
MARK = Markup("<!--live-->")  # where the live part stands in a page; no text of a run has a `<`
_GROWING = (folder.ROLLOUTS, folder.FAILED_FILE)
_PASSED_OVER = (
    "*.partial",
    "cooling-*",
    folder.PROGRESS,
    folder.ANSWERS,
    folder.SAID,
    folder.TRACKING,
    folder.TRACKED,
    folder.TRAINING,
)
"""Patterns of what no report is made of."""
_COLUMNS, _HIGH = 60, 40  # of the histogram
_TONES = {"running": "live", "finished": "done", "halted": "rejected", "failed": "rejected", "interrupted": "going"}
_UNREADABLE = {"state": "unreadable", "tone": "rejected"}


class Look:
    """Where a run stands, or why that cannot be read: looked at where something has changed, and while it goes on."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._at = -math.inf
        self._seen: dict[str, Any] = {}
        self._found: Status | str = ""

    def __call__(self) -> Status | str:
        with self._lock:
            if time.monotonic() - self._at >= EVERY:
                seen = {entry.name: _version(entry) for entry in entries(self.path)}
                if seen != self._seen or not isinstance(self._found, Status) or self._found.state == "running":
                    self._seen = seen
                    try:
                        self._found = look(self.path)
                    except (UserError, OSError) as e:  # the next look may find it
                        self._found = str(e)
                self._at = time.monotonic()
            return self._found


class Report:
    """A run's report as a page with `MARK` in it, "" before it is made.

    `version` counts, `problem` says why there is none, or no newer one.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, path: Path):
        self.path = path
        self.page, self.version, self.problem = "", 0, "The report is being made."
        self._made_of: tuple[Any, Any] = (None, None)
        self._looked, self._made, self._took = -math.inf, -math.inf, 0.0

    def bring_up_to_date(self) -> None:
        """Begin to make it anew, if it is time and something has changed; none is made beside another one."""
        now = time.monotonic()
        if now - self._looked < EVERY or not self._one_at_a_time.acquire(blocking=False):
            return
        self._looked = now
        documents, logs = contents = _contents(self.path)
        rested = now - self._made >= _REST * self._took
        if documents != self._made_of[0] or (rested and logs != self._made_of[1]):
            self._made_of = contents
            threading.Thread(target=self._make, daemon=True).start()  # for which Ctrl-C does not wait
        else:
            self._one_at_a_time.release()

    def _make(self) -> None:
        begun, problem = time.monotonic(), "The report could not be made; the terminal of genius-lite watch says why."
        try:
            self.page, problem = page(gather(self.path), MARK), ""
        except (UserError, OSError) as e:
            problem = f"There is no newer report: {e}"
        finally:
            self.version, self.problem = self.version + 1, problem
            self._looked = self._made = time.monotonic()
            self._took = self._made - begun
            self._one_at_a_time.release()


def standing(status: Status | str) -> dict[str, Any]:
    """What `live.html` says of a run; of one that cannot be read, why."""
    if isinstance(status, str):
        said = "this run cannot be read"
        return _UNREADABLE | {"board": None, "meaning": status, "verdict": "", "idle": True, "said": said}
    board, running, over = status.board, status.state == "running", status.state in ("finished", "halted")
    facts = {
        "Whole run": run_left(board) if running else "",
        "At work for": at_work(board, running),
        "Memory": memory_line(board) if running else "",
        "Best so far" if not over else "Best": "" if board.best is None else named(board.best),
        "Model": board.model,
        "Questions": number(board.queries),
        "Folder": board.out,
        "Exported": status.exported or "",
        "Damaged, and passed over": ", ".join(status.damaged),
    }
    return {
        "board": board,
        "state": status.state,
        "tone": _TONES[status.state],
        "meaning": "" if running and not board.stopping else status.meaning,
        "verdict": status.verdict,
        "idle": not running,
        "said": f"{status.state}: {_place(board) if status.state in ('running', 'interrupted') else status.meaning}",
        "where": f"{named(board.number)} of {board.rounds}" if board.number else named(0),
        "stages": board.marked_stages(over),
        "work": None if over else board.work,
        "counted": counted(board.work).replace("  ", " · ") if board.work else "",
        "facts": {name: value for name, value in facts.items() if value},
        "values": _histogram(board.values),
    }


def beside(name: str, status: Status | str, here: bool) -> dict[str, Any]:
    """What it says of a run in the list of all that are in the folder."""
    shown = {"name": name, "href": quote(name, safe=""), "here": here}
    if isinstance(status, str):
        return shown | _UNREADABLE | {"where": ""}
    board = status.board
    left = f", {run_left(board)}" if status.state == "running" and board.run_left is not None else ""
    best = f"best: {named(board.best)}" if board.best is not None else ""
    where = best if status.state in ("finished", "halted") else f"{_place(board)}{left}"
    return shown | {"state": status.state, "tone": _TONES[status.state], "where": where}


def _place(board: RunState) -> str:
    return f"{named(board.number)}, {board.kind}"


def _histogram(values: Histogram) -> dict[str, Any] | None:
    """The foresight values as columns of a height of at most `_HIGH`."""
    if values.count <= 0:
        return None
    low, high, counts = values.columns(_COLUMNS)
    columns = [math.ceil(_HIGH * n / max(counts)) for n in counts]
    ends = {"low": number(low), "high": number(high), "mean": number(values.mean)}
    return ends | {"count": values.count, "columns": columns}


def entries(path: Path) -> list[os.DirEntry[str]]:
    """List a folder; of one that is gone, or not ours to read, nothing."""
    try:
        with os.scandir(path) as found:
            return list(found)
    except OSError:
        return []


def _version(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """What changes with what a file says; a link is not followed."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # it is gone
        return None
    return found.st_mtime_ns, found.st_size


def changed(file: Path) -> float:
    """When a file was changed; 0 where there is none, or a link."""
    try:
        found = file.lstat()
    except OSError:
        return 0.0
    return found.st_mtime if stat.S_ISREG(found.st_mode) else 0.0


def _contents(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a report is made of, each file with what changes with it: documents, and logs that grow."""
    documents, logs, folders = dict[str, Any](), dict[str, Any](), [run]
    while folders:
        for entry in entries(folders.pop()):
            if any(fnmatch(entry.name, pattern) for pattern in _PASSED_OVER):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.name in _GROWING:
                logs[entry.path] = int(_FINE * math.log2(1 + (_version(entry) or (0, 0))[1]))
            elif Path(entry.name).suffix in (".json", ".jsonl", ".gguf"):
                documents[entry.path] = _version(entry)
    return documents, logs
