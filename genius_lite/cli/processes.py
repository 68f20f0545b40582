"""A command that several processes were started for: one does it, the others help it to train."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from genius_lite.errors import UserError

if TYPE_CHECKING:
    from genius_lite.learner.team import Team


@contextmanager
def main_process() -> Iterator[Team]:
    """The block is for the process that leads; the others follow it in here, and end as it ends.

    Raises:
        Exit: this process has followed, and is done.
        UserError: what was launched cannot be.
    """
    from genius_lite.learner.team import join, leave, require_possible

    team = join()
    try:
        if not team.leads:
            from genius_lite.learner.following import follow

            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leading process heeds it, and says what it means
            raise typer.Exit(follow(team))
        with _ending(team):
            require_possible(team)
            yield team
    finally:
        leave(team)


@contextmanager
def _ending(team: Team) -> Iterator[None]:
    """Tell the others how it ended."""
    code = 1
    try:
        yield
        code = 0
    except typer.Exit as e:
        code = e.exit_code
        raise
    except UserError:
        code = 2
        raise
    finally:
        if team.size > 1:
            from genius_lite.learner.following import dismiss

            dismiss(team, code)
