"""The live view of a run on a terminal: of the run in this process, or of one in another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from genius_lite.report.state import Meter
from genius_lite.report.status import Status, look
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.view import counted, duration, signs_of, view

Draw = Callable[[list[Text]], None]
_NARROWEST, _LOWEST = 40, 10  # columns and lines of a terminal on which a view is of any use
_RUNNING = "Ctrl-C finishes what is under way, saves and stops; *: best so far"
_STOPPING = "stopping when that is done; Ctrl-C again stops at once"
_WATCHING = "Ctrl-C ends this view, not the run; *: best so far"
_WATCH_EVERY, _LINE_EVERY = 1.0, 15.0  # seconds


def progressor(console: Console, command: str = "") -> TerminalProgress:
    """What shows a run on this console: live on a terminal, bars on one too small for that, plain lines elsewhere."""
    return LiveProgress(console, command) if _is_lively(console) else TerminalProgress(console, command)


def watch(run: Path, console: Console) -> Status:
    """Show a run that another process works on, until it ends; its last status.

    Raises:
        UserError: this is no run folder.
    """
    if not _is_lively(console):
        return _watch_in_lines(run, console)
    with _picture(console) as draw:
        while (status := look(run)).state == "running":
            draw(view(status.board, _WATCHING, console.width, console.height - 1, signs_of(console)))
            time.sleep(_WATCH_EVERY)
    return status


class LiveProgress(TerminalProgress):
    """Keeps the board on the screen, below the lines that are said; it goes when the run ends."""

    def __init__(self, console: Console, command: str = ""):
        super().__init__(console, command)
        self._draw: Draw | None = None
        self._screen = threading.RLock()  # a line that is said and a new picture must not mix

    def say(self, line: str) -> None:
        """Print a line above the view."""
        with self._screen:
            super().say(line)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        with _picture(self.console) as self._draw:
            try:
                yield
            finally:
                self._draw = None

    def _refresh(self) -> None:
        if not (draw := self._draw):
            return
        hint = _STOPPING if self.board.stopping else _RUNNING
        with self._lock:
            lines = view(self.board, hint, self.console.width, self.console.height - 1, signs_of(self.console))
        with self._screen:
            draw(lines)

    @contextmanager
    def _stage(self, meter: Meter) -> Iterator[Callable[[], None]]:
        yield lambda: None
        self.say(f"{meter.name}: {meter.total:.0f} {meter.unit} in {duration(time.monotonic() - meter.start)}")


def _is_lively(console: Console) -> bool:
    """Whether a picture can be redrawn on it, and has room."""
    redrawn = console.is_terminal and not console.is_dumb_terminal
    return redrawn and console.width >= _NARROWEST and console.height >= _LOWEST


@contextmanager
def _picture(console: Console) -> Iterator[Draw]:
    """Draws lines in the place of those before; a picture that has not changed is left alone, so that none flickers."""
    drawn: tuple[list[Text], int] | None = None
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(lines: list[Text]) -> None:
            nonlocal drawn
            if (lines, console.width) != drawn:
                drawn = lines, console.width
                live.update(Group(*lines), refresh=True)

        yield draw


def _watch_in_lines(run: Path, console: Console) -> Status:
    shown, last = None, 0.0
    while (status := look(run)).state == "running":
        board, now = status.board, time.monotonic()
        if (board.number, board.kind) != shown or now - last >= _LINE_EVERY:
            shown, last = (board.number, board.kind), now
            where = f"round {board.number}: {board.kind}" if board.number else str(board.kind)
            line = f"{where}: {counted(board.work)}" if board.work else where
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        time.sleep(_WATCH_EVERY)
    return status
