"""Progress of a run and of its stages: live or as bars on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from genius_lite.errors import NoPairError, Stopped, UserError
from genius_lite.hardware.system import memory_held
from genius_lite.progress import Advance, Progress, Stage
from genius_lite.records import Rollout
from genius_lite.report.columns import table_row
from genius_lite.report.state import Memory, Meter, RunState, glimpse
from genius_lite.report.view import Line, counted, is_lively, live_lines, view
from genius_lite.results.rounds import RoundReport
from genius_lite.rundir.disk import put
from genius_lite.rundir.folder import PROGRESS, RECIPE
from genius_lite.rundir.reader import RunFolder
from genius_lite.text import amount, short_duration

_CTRL_C = "stops at once" if os.name == "nt" else "finishes what is under way, saves and stops"  # see interrupts.py
RUNNING = f"Ctrl-C {_CTRL_C}; *: best so far"
_STOPPING = "stopping when that is done; Ctrl-C again stops at once"
_LINE_EVERY = 15.0  # seconds between plain lines of one stage
_LOOK_EVERY = 1.0  # seconds between two looks at a run


class TerminalProgress(Progress):
    """Shows one stage after the other on `console`; of a run, it keeps the board in the run's folder too.

    Where the console can show it, the board of a run stands below the lines that are said, and goes when the run ends.
    `command` is what goes on with a run that was interrupted, for whoever looks at it later.
    """

    def __init__(self, console: Console, command: str = ""):
        self.console, self.command = console, command
        self.board = RunState()
        self._run: RunFolder | None = None
        self._meter: Meter | None = None
        self._followed: str | None = None  # the query whose search is shown
        self._seconds: dict[Stage, float] = {}
        self._lock = threading.Lock()
        self._draw: Callable[[list[Line]], None] | None = None
        # A line that is said and a new picture must not mix; a terminal that is held up holds up nothing else.
        self._screen = threading.RLock()

    def say(self, line: str) -> None:
        with self._screen:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self, out: Path, model: str, queries: int, rounds: int, forecast: dict[Stage, float]) -> Iterator[None]:
        """Show a run; `progress.json` in its folder says to other processes where it stands."""
        self._run = RunFolder(out) if (out / RECIPE).is_file() else None
        self.board = RunState(
            out=str(out),
            model=model,
            queries=queries,
            rounds=rounds,
            forecast=forecast,
            pid=os.getpid(),
            host=platform.node(),
            command=self.command,
            started=time.time(),
        )
        over = threading.Event()
        looker = threading.Thread(target=self._look_until, args=(over,), daemon=True)
        with live_lines(self.console) if is_lively(self.console) else nullcontext() as self._draw:
            looker.start()
            try:
                yield
            except BaseException as e:
                self.board.ended, self.board.stuck = _reason(e), isinstance(e, NoPairError)
                raise
            finally:
                over.set()
                looker.join()
                self._look()
                self._draw = None

    def enter(self, number: int, stage: Stage) -> None:
        with self._lock:
            self.board.enter(number, stage)
            self._seconds = self._run.stage_seconds() if self._run else {}

    def searched_before(self, rollouts: Sequence[Rollout]) -> None:
        with self._lock:
            for step in (step for rollout in rollouts for step in rollout.steps):
                self.board.values.add(step.values)

    def stepped(self, so_far: Rollout, decode: Callable[[list[int]], str]) -> None:
        """Show a step of one search, which is followed to its end; then of the next one that makes a step."""
        with self._lock:
            self.board.values.add(so_far.steps[-1].values)
            if self._followed in (None, so_far.query.id):
                self._followed, self.board.glimpse = so_far.query.id, glimpse(so_far, decode)

    def searched(self, rollout: Rollout) -> None:
        if self._followed == rollout.query.id:
            self._followed = None

    def finished(self, report: RoundReport, lights: dict[str, str], best: int) -> None:
        with self._lock:
            self.board.rows = [*(r for r in self.board.rows if r["round"] != report.round), table_row(report)]
            self.board.rows.sort(key=lambda r: r["round"])
            self.board.lights, self.board.best = lights, best

    @contextmanager
    def stage(
        self, name: str, total: float, unit: str, scale: float = 1.0, done: float = 0.0, at_once: float = 0.0
    ) -> Iterator[Advance]:
        meter = Meter(name, unit, total * scale, done * scale, at_once * scale)
        show = self._in_view if self._draw else self._bar if self.console.is_interactive else self._lines
        self._meter = meter
        try:
            with show(meter) as moved:

                def advance(n: float) -> None:
                    with self._lock:
                        meter.advance(n * scale)
                    moved()

                yield advance
        finally:
            self._meter = None

    @contextmanager
    def _in_view(self, meter: Meter) -> Iterator[Callable[[], None]]:
        yield lambda: None
        self.say(f"{meter.name}: {amount(meter.total, meter.unit)} in {short_duration(time.monotonic() - meter.start)}")

    @contextmanager
    def _bar(self, meter: Meter) -> Iterator[Callable[[], None]]:
        columns = (
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[counted]}", markup=False),
        )
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(
                meter.name, total=meter.total, completed=round(meter.done), counted=counted(meter.read())
            )
            yield lambda: bars.update(task, completed=meter.done, counted=counted(meter.read()))
            bars.update(task, completed=meter.total)

    @contextmanager
    def _lines(self, meter: Meter) -> Iterator[Callable[[], None]]:
        last = meter.start

        def moved() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                self.say(f"{meter.name}: {counted(meter.read())}")

        before = f", {meter.done:.0f} of them from before" if meter.done else ""
        self.say(f"{meter.name}: {amount(meter.total, meter.unit)}{before}")
        yield moved
        self.say(f"{meter.name}: done in {short_duration(time.monotonic() - meter.start)}")

    def _look_until(self, over: threading.Event) -> None:
        while not over.is_set():
            self._look()
            over.wait(_LOOK_EVERY)

    def _look(self) -> None:
        """Measure what changes by itself, show it, and keep it."""
        with self._lock:
            board = self.board
            board.updated = time.time()
            board.work = self._meter.read() if self._meter else None
            board.run_left = board.left(self._seconds)
            board.memory = Memory(*memory_held())
            with suppress(OSError):  # a full disk is for the stage to notice; nothing depends on this file
                put(Path(board.out) / PROGRESS, msgspec.json.encode(board), flush=False)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the view, if there is one, up to date."""
        if not (draw := self._draw):
            return
        hint = _STOPPING if self.board.stopping else RUNNING
        with self._lock:
            board = deepcopy(self.board)
        with self._screen:
            draw(view(board, hint, self.console, self.console.height - 1))


def _reason(error: BaseException) -> str:
    """Say in one line why a run ended."""
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        return "stopped on request"
    said = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())
