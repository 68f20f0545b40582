"""How a run ends: by Ctrl-C, or as one of several launched processes, of which one runs and the others help it.

The first Ctrl-C lets a run finish what is under way, the second one stops it at once, as SIGTERM does. SIGHUP, which
tells that the terminal has gone, is heeded as SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import typer

from genius_lite.cli.arguments import command_line
from genius_lite.errors import Stop, Stopped, UserError
from genius_lite.progress import Stage
from genius_lite.text import visible

if TYPE_CHECKING:
    from genius_lite.learner.process_group import ProcessGroup
    from genius_lite.report.terminal import TerminalProgress

_PATIENCE = 5.0  # seconds that a library's call may take before the process ends without waiting for it
_AT_ONCE = (signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ()
_FIRST = {
    Stage.ROLLOUTS: "the queries under way are finished, no other is begun",
    Stage.EVALUATE: "the problems under way are answered, no other is begun",
    Stage.TRAIN: "the update under way is finished (or the reference pass before them) and kept",
}


@contextmanager
def handle_interrupts(progress: TerminalProgress, launched: bool = False) -> Iterator[Stop]:
    """Heed SIGINT, SIGTERM and SIGHUP in the block: the first SIGINT asks it to stop, and says what it does.

    Any other raises KeyboardInterrupt. If the main thread does not come to that within some seconds, since a library
    keeps it, the process ends as if it were killed, which a run folder is made for. Where a signal is ignored, as in
    the background of a shell, it stays so. On Windows the system's own way is kept: the first press stops at once.

    Args:
        launched: by a launcher of several processes, which ends them with SIGTERM if one fails.

    Raises:
        Exit: the run was stopped; standard error says how to go on. 130 after Ctrl-C, 143 after SIGTERM, 129 after
            SIGHUP, as in shells.
    """
    presses = _Interrupts(progress)
    with _signals_heard(presses):
        try:
            yield presses.stop
        except (Stopped, KeyboardInterrupt):
            by = " by the launcher, whose report says why" if launched and presses.urgent == signal.SIGTERM else ""
            goes_on = f"what is finished is kept. The same command goes on: {visible(command_line())}"
            with suppress(OSError):  # the terminal may have gone
                print(f"stopped{by}; {goes_on}", file=sys.stderr)
            raise typer.Exit(presses.exit_code) from None
        except OSError as e:
            if e.errno != errno.EIO or not presses.hung_up():
                raise
            raise typer.Exit(presses.exit_code) from None  # a terminal that has gone takes no line


@contextmanager
def _signals_heard(presses: _Interrupts) -> Iterator[None]:
    if os.name != "posix":
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    heard = [s for s in (signal.SIGINT, *_AT_ONCE) if signal.getsignal(s) is not signal.SIG_IGN]
    earlier = {s: signal.signal(s, presses.handle) for s in heard}
    # Python runs a handler only between two steps of the main thread, which may be within a library for minutes.
    earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=presses.listen, args=(reader,), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier_fd)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        presses.over.set()
        writer.close()
        listener.join()
        reader.close()


class _Interrupts:
    """The signals that came."""

    def __init__(self, progress: TerminalProgress):
        self.stop, self.progress = Stop(), progress
        self.over, self._ending = threading.Event(), threading.Event()
        self.urgent: int | None = None
        self._raised = False

    @property
    def exit_code(self) -> int:
        return 128 + (self.urgent or signal.SIGINT)

    def hung_up(self) -> bool:
        """Say whether the terminal has gone; its signal may come a moment after a write has failed."""
        with suppress(KeyboardInterrupt):
            self._ending.wait(1)
        return self.urgent is not None and self.urgent == getattr(signal, "SIGHUP", None)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in the main thread, as soon as that comes to it."""
        if self.urgent and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def listen(self, reader: socket.socket) -> None:
        """Act at once, in a thread of its own; each byte is the number of a signal."""
        while got := reader.recv(1):
            number = got[0]
            if number == signal.SIGINT and not self.stop.asked and self.progress.board.entered:
                self.stop.asked = True
                first = _FIRST.get(self.progress.board.kind, "this stage is finished")
                self._say(f"stopping: {first}; press Ctrl-C again to stop at once")
            elif number in (signal.SIGINT, *_AT_ONCE):
                self._end(number)
                return

    def _end(self, number: int) -> None:
        self.urgent = number
        self._ending.set()
        signal.pthread_kill(threading.main_thread().ident or 0, number)  # whatever it waits for, it wakes
        if not self.over.wait(_PATIENCE):
            self.progress.console.show_cursor()
            os._exit(self.exit_code)

    def _say(self, line: str) -> None:
        self.progress.board.stopping = True
        if self.progress.console.is_terminal:
            self.progress.say(line)
        else:
            with suppress(OSError):
                print(line, file=sys.stderr, flush=True)


@contextmanager
def main_process() -> Iterator[ProcessGroup]:
    """Run the block in the first process only; the others help it in here, and end as it ends.

    Raises:
        Exit: this process has helped, and is done.
        UserError: what was launched cannot be.
    """
    from genius_lite.learner.process_group import join, leave, require_possible

    group = join()
    try:
        if not group.is_main:
            from genius_lite.learner.worker_loop import run_worker

            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process heeds it, and says what it means
            raise typer.Exit(run_worker(group))
        code = 1
        try:
            require_possible(group)
            yield group
            code = 0
        except typer.Exit as e:
            code = e.exit_code
            raise
        except UserError:
            code = 2
            raise
        finally:
            if group.size > 1:
                from genius_lite.learner.worker_loop import shutdown_workers

                shutdown_workers(group, code)
    finally:
        leave(group)
