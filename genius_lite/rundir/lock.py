"""Who works in a run folder: one process at a time, also where the file system knows no locks."""

from __future__ import annotations

import os
import platform
import shlex
from contextlib import AbstractContextManager
from pathlib import Path

import filelock

from genius_lite.errors import UserError
from genius_lite.rundir.disk import NOT_OFFERED, is_alive
from genius_lite.text import brief

LOCK, MARKER = "lock", "lock.held"
"""The file that is locked; and, where none can be, one that says by its being there that the folder is in use."""
_PATIENCE = 1.0  # seconds: whoever only looks (`in_use`) holds the lock for a moment


def hold(folder: Path, named: Path | None = None) -> AbstractContextManager[object]:
    """Hold a folder, which exists, for this process alone, until the block ends.

    Args:
        named: what a message calls in use, if not the folder itself.

    Raises:
        UserError: another process works in it; or, where the file system knows no locks, it may.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=_PATIENCE, fallback_to_soft=False)
    try:
        return lock.acquire()
    except filelock.Timeout:
        raise UserError(f"{named or folder} is in use by another process; wait for it or name another `out`") from None
    except OSError as e:
        if e.errno not in NOT_OFFERED:
            raise
    # A file that filelock takes over where it can tell that its process is gone.
    marker = filelock.SoftFileLock(folder / MARKER, timeout=_PATIENCE)
    try:
        return marker.acquire()
    except filelock.Timeout:
        host, process = _holder(folder / MARKER) or ("", 0)
        who = f"process {process} on {brief(host)}" if host else "another process"
        raise UserError(
            f"{named or folder} is in use by {who}, and this file system has no locks that would end with it; "
            f"if it has ended, take the folder over with: rm {shlex.quote(str(folder / MARKER))}"
        ) from None


def _holder(marker: Path) -> tuple[str, int] | None:
    """Read the machine and the number of the process that made a marker; None if there is none, or it is cut short."""
    try:
        process, host, *_ = marker.read_text(errors="replace").splitlines()
        return host.partition("?")[0], int(process)  # filelock adds a container's name space behind the mark
    except (OSError, ValueError):
        return None


def in_use(folder: Path) -> bool:
    """Say whether a process works in a folder; nothing is written. A PermissionError where that cannot be seen."""
    if holder := _holder(folder / MARKER):
        host, process = holder
        if host != platform.node() or (process != os.getpid() and is_alive(process)):
            return True
        if filelock.SoftFileLock(folder / MARKER).is_lock_held_by_us:  # not so in a container that gives numbers again
            return True
    if os.name != "posix":
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
                return False
        except filelock.Timeout:
            return True
    import fcntl

    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        raise
    except OSError:  # there is none, or it is a link
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
