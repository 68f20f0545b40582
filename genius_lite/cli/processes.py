"""A command that several processes were started for: one does it, the others help it to train."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from genius_lite.errors import UserError

if TYPE_CHECKING:
    from genius_lite.learner.process_group import ProcessGroup


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
