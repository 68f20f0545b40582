"""What stands for a command that `tests/support/warm.py` forks: `python -S forked.py SOCKET MODULE ARGUMENTS...`.

It has the command's files, folder and environment, hands on the signals that it gets, and ends as the command ends.
It starts in a fiftieth of a second: nothing is imported here but what the interpreter has.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import NamedTuple

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def cores() -> list[int]:
    """List the cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def keep_to(cores: list[int]) -> None:
    """Have this process, and what it starts, use these cores alone."""
    if cores:
        os.sched_setaffinity(0, cores)


class Asked(NamedTuple):
    """A module that is to be run, and in what surroundings."""

    module: str
    arguments: list[str]
    cwd: str
    env: dict[str, str]
    before: str = ""
    """Python that is run first."""


class Command:
    """A process that somebody else has forked.

    Attributes:
        pid: its number.
    """

    def __init__(self, connection: socket.socket):
        self._connection, self._lines = connection, connection.makefile()
        self.pid = int(self._lines.readline())

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._connection.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return its exit code, or the negative number of the signal that ended it.

        Raises:
            TimeoutError: that took more seconds; it is killed.
        """
        self._connection.settimeout(timeout)
        try:
            return int(self._lines.readline())
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise


def ask(path: str, asked: Asked, files: list[int]) -> Command:
    """Have the process that listens at a path fork a command, on this one's cores, with its three standard files."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.send_fds(connection, [b"+"], files)
    connection.sendall(json.dumps([asked, cores()]).encode() + b"\n")
    return Command(connection)


def asked(connection: socket.socket) -> tuple[Asked, list[int], list[int]]:
    """Read what a connection asks for, on which cores, and its three files."""
    files = socket.recv_fds(connection, 1, 3)[1]
    with connection.makefile() as lines:
        told, cores = json.loads(lines.readline())
        return Asked(*told), cores, files


def command(path: str, *arguments: str) -> list[str]:
    """Return the command line of a module and its arguments, forked by the process that listens at a path."""
    return [sys.executable, "-S", "-E", __file__, path, *arguments]


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    # Not by pathlib, which takes longer to import than all the rest.
    here = os.getcwd()  # noqa: PTH109
    with ask(path, Asked(module, arguments, here, {**os.environ}), [0, 1, 2]) as forked:
        for number in _HANDED_ON:
            signal.signal(number, lambda number, _: os.kill(forked.pid, number))
        code = forked.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
