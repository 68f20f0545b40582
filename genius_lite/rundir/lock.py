"""Who works in a run folder: one process at a time, also where the file system knows no locks."""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import filelock
import msgspec

from genius_lite.errors import UserError
from genius_lite.rundir.disk import NOT_OFFERED, is_alive, put, sync_descriptor

LOCK, MARKER = "lock", "lock.held"
"""The file that is locked; and, where none can be, one that says by its being there that the folder is in use."""
_PATIENCE = 1.0  # seconds: whoever only looks (`in_use`) holds the lock for a moment
_TAKEN_OVER = 0.5  # seconds, after which of several that take over at once the last one stays
_marked_here: set[Path] = set()


class _Holder(msgspec.Struct, frozen=True):
    """A process that works in a folder; `since` is for people."""

    host: str
    process: int
    since: str


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder, which exists, for this process alone.

    Raises:
        UserError: another process works in it; or, where the file system knows no locks, it may.
    """
    with ExitStack() as held:
        lock = filelock.FileLock(folder / LOCK, fallback_to_soft=False)
        try:
            held.enter_context(lock.acquire(timeout=_PATIENCE))
        except filelock.Timeout:
            raise UserError(f"{folder} is in use by another process; wait for it or name another `out`") from None
        except OSError as e:
            if e.errno not in NOT_OFFERED:
                raise
            held.enter_context(_marked(folder / MARKER))
        yield


def in_use(folder: Path) -> bool:
    """Say whether a process works in a folder. Nothing is written.

    Raises:
        PermissionError: that cannot be seen.
    """
    if (holder := _read(folder / MARKER)) and not _has_ended(holder, folder / MARKER):
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


@contextmanager
def _marked(marker: Path) -> Iterator[None]:
    """Hold a folder by a file in it.

    Raises:
        UserError: there is one, and its process goes on, or is another machine's.
    """
    own = _Holder(platform.node(), os.getpid(), time.strftime("%Y-%m-%d %H:%M"))
    try:
        with marker.open("xb") as file:
            file.write(msgspec.json.encode(own))
            file.flush()
            sync_descriptor(file.fileno())
    except FileExistsError:
        other = _read(marker)
        if not other or not _has_ended(other, marker):
            raise _in_use(marker, other) from None
        put(marker, msgspec.json.encode(own))
        time.sleep(_TAKEN_OVER)
        if (last := _read(marker)) != own:
            raise _in_use(marker, last) from None
    _marked_here.add(marker.absolute())
    try:
        yield
    finally:
        _marked_here.discard(marker.absolute())
        marker.unlink(missing_ok=True)


def _in_use(marker: Path, by: _Holder | None) -> UserError:
    who = f"process {by.process} on {by.host} since {by.since}" if by else "another process"
    return UserError(
        f"{marker.parent} is in use by {who}, and this file system has no locks that would end with it; if it has "
        f"ended, take the folder over with: rm {shlex.quote(str(marker))}"
    )


def _read(marker: Path) -> _Holder | None:
    try:
        return msgspec.json.decode(marker.read_bytes(), type=_Holder)
    except (OSError, msgspec.DecodeError):  # there is none, or it was cut short
        return None


def _has_ended(holder: _Holder, marker: Path) -> bool:
    """Say whether a process of this machine is gone; in containers this one may have its number."""
    if holder.host != platform.node():
        return False
    if holder.process == os.getpid():
        return marker.absolute() not in _marked_here
    return not is_alive(holder.process)
