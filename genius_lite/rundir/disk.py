"""Disks as they are: what reaches them whole, how much they hold, and where temporary files and caches go."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
import psutil

from genius_lite.errors import Stopped, UserError

UNTOLD = 1 << 60
"""Free bytes of a disk that does not tell them."""
NOT_OFFERED = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What file systems answer that know no `fsync` of folders, or no locks: FUSE, CIFS, some NFS."""
_TRIED = 1 << 20  # bytes that show whether a disk takes anything
_TRIES, _BETWEEN = 50, 0.1  # on Windows, of a change to a file that somebody reads; seconds
_SCRATCH = ".genius-lite-tmp"


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk, where the file system can. Windows cannot open folders."""
    if os.name == "nt" and path.is_dir():
        return
    try:
        fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # one may make files in some folders whose names one may not see
            return
        raise
    try:
        sync_descriptor(fd)
    finally:
        os.close(fd)


def sync_descriptor(fd: int) -> None:
    """Flush an open file; a file system that knows no such thing has done what it can."""
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in NOT_OFFERED:
            raise


def put(path: Path, content: bytes, *, shared: bool = False, flush: bool = True) -> None:
    """Write a file, new or not, that is the old or the new one whatever happens meanwhile.

    Args:
        shared: several processes may write it at once.
        flush: wait until the disk has it; else a power cut may take it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as file:  # which follows no link
            file.write(content)
        if flush:
            sync(partial)
        settled(lambda: partial.replace(path))
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    if flush:
        sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; a link itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        settled(lambda: shutil.rmtree(path))
    else:
        settled(lambda: path.unlink(missing_ok=True))


def require_new(path: Path, kind: str, instead: str = "delete it") -> None:
    """Refuse, by a UserError, to write a file or a folder where something is already."""
    if path.exists():
        raise UserError(f"{path} exists; name another {kind}, or {instead}")


def settled(change: Callable[[], object]) -> None:
    """Make a change to a file; on Windows try for some seconds, as whoever reads a file keeps it from being replaced.

    Virus scanners and the index read what is new; `watch` reads what a run has written.
    """
    for _ in range(_TRIES if os.name == "nt" else 0):
        with suppress(PermissionError):
            change()
            return
        time.sleep(_BETWEEN)
    change()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Have a disk that takes no more speak for itself: every library that writes has an exception of its own for it.

    Raises:
        OSError: the folder takes no file any more, which is why the block failed.
    """
    try:
        yield
    except Exception as e:
        known = isinstance(e, (UserError, Stopped)) or (isinstance(e, OSError) and e.errno)
        if not known and (why := _refusal(folder)):
            raise why from e
        raise


def _refusal(folder: Path) -> OSError | None:
    """Return what the system says to one more file in a folder; None if it takes it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return OSError(e.errno, e.strerror, str(folder))
    return None


def free_disk(folder: Path) -> int:
    """Count the free bytes of the disk that a folder is, or will be, on; `UNTOLD` where it says none, and takes some.

    Mounts with quotas, and some over networks, do so.
    """
    existing = existing_parent(folder)
    return shutil.disk_usage(existing).free or (0 if _refusal(existing) else UNTOLD)


def told(free: int) -> str:
    """Write the free bytes of a disk as `12.3 GB`, if it told them."""
    return "an untold amount" if free == UNTOLD else f"{free / 1e9:.1f} GB"


def existing_parent(folder: Path) -> Path:
    """Return the folder that another is, or will be, made in: itself, or the nearest above it that is there.

    Raises:
        UserError: its drive is not there.
    """
    if not (found := next((p for p in [folder, *folder.absolute().parents] if p.exists()), None)):
        raise UserError(f"{folder}: there is no {folder.absolute().anchor}; name another place")
    return found


def can_write(folder: Path) -> bool:
    """Say whether a folder, or the one that it would be made in, takes files of this user."""
    return os.access(existing_parent(folder), os.W_OK | os.X_OK)


def cache_folder() -> Path:
    """Return this user's cache, which need not exist, nor be such that it can be written.

    Where several users share a place (XDG_CACHE_HOME on a cluster), each has a folder there. Without a home, as in cron
    and containers, it is below the system's folder for temporary files.
    """
    try:
        found = platformdirs.user_cache_path("genius-lite")
    except RuntimeError:
        found = Path("~")
    if not found.is_absolute():  # so some versions leave an unknown home
        found = Path(tempfile.gettempdir(), "genius-lite")
    with suppress(OSError):  # nothing is there yet, or nobody may look
        if os.name == "posix" and found.stat().st_uid != os.geteuid():
            found = found.with_name(f"{found.name}-{os.geteuid()}")
    return found


@contextmanager
def scratch(where: Path | None = None, needed: int = 0, what: str = "this") -> Iterator[Path]:
    """Make a folder for temporary files, which goes with the block. What processes left that were killed goes first.

    Args:
        where: the folder that it is made in, or the nearest above it that is there. If not given, it is the system's
            folder for temporary files, which may be in memory; for whatever needs room the user's cache, if it can be.
        needed: bytes that it is to hold, if that is much.
        what: it is for, for the message.

    Raises:
        UserError: there is no room for it.
    """
    folder = existing_parent(where) if where else _temporary(needed)
    host = re.sub(r"\W", "_", platform.node())[:64] + _process_numbering()
    for left in folder.glob(f"{_SCRATCH}-{host}-*"):
        process = left.name.split("-")[-2]
        if process.isdecimal() and not is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)  # it may be another user's
    if needed and (free := free_disk(folder)) < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; make room or move it to "
            "another disk"
        )
    made = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}-{host}-{os.getpid()}-", dir=folder))
    try:
        with writing_to(folder):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _process_numbering() -> str:
    """Name what numbers the processes here: containers may share a folder and a host's name, and number their own."""
    with suppress(OSError):
        return re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    return ""


def is_alive(process: int) -> bool:
    """Say whether there is a process of this number, which somebody may have made up."""
    with suppress(OverflowError):
        return psutil.pid_exists(process)
    return False


def _temporary(needed: int) -> Path:
    with suppress(OSError):
        if needed and can_write(cache := cache_folder()):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cache
    return Path(tempfile.gettempdir())
