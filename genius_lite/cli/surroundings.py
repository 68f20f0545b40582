"""What a process is started into, and what the machine refuses it.

Streams and home are made such that everything else may rely on them. Full disks, limits of processes, files that nobody
may read: each becomes one line. They may come out of task groups, and out of libraries that have exceptions of their
own for them.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genius_lite.errors import NonFiniteError
from genius_lite.hardware.system import NO_MEMORY

_GOES_ON = "the same command goes on from what is finished"
_MEND: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR), "mend that"),
    errno.EFBIG: "no file may be so large here: see `ulimit -f`, or take a disk that is not FAT",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise `ulimit -n`"),
    errno.EAGAIN: "raise `ulimit -u`, or close other programs",
    errno.ENOMEM: "close other programs, or raise `ulimit -v`; genius-lite plan says what a run takes",
    errno.ENAMETOOLONG: "take shorter names",
    errno.ENOENT: "it was there before: put it back",
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),
        "see that the disk, or the network that it is on, works",
    ),
}
"""What to do about errors of the system that are no faults of this program."""
_NO_MEMORY = OSError(errno.ENOMEM, "out of memory, or of processes")
# What libraries in Rust (safetensors, tokenizers) make of an error's number; what numpy says of an array that it could
# not write whole, and Python where the system has no room for a thread, or a library.
_NUMBERED = re.compile(r"\(os error (\d+)\)")
_WORDS = (
    (re.compile(r"\d+ requested and \d+ written"), OSError(errno.ENOSPC, "No space left on device")),
    (NO_MEMORY, _NO_MEMORY),
    (re.compile("can't start new thread|failed to map segment"), _NO_MEMORY),
    (re.compile("No usable temporary directory"), OSError(errno.EACCES, "no temporary files can be written", "TMPDIR")),
)
_UNLOADABLE = re.compile(r"Failed to load shared library|Shared library with base name")  # says llama-cpp-python


def drop_output() -> None:
    """Forget what was to be printed, so that Python does not complain of it when it ends."""
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, sys.stdout.fileno())
    os.close(fd)


def settle() -> None:
    """Open the standard streams that are closed, show what an encoding lacks, and have a home folder.

    cron, systemd and containers may start a process without any of these. Libraries would take the first file that they
    open for a standard stream, fail to print, or make a folder named `~`.
    """
    for number, (name, mode) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, mode)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            if name == "stdout" and isinstance(stream.buffer, io.RawIOBase):
                # With PYTHONUNBUFFERED, which containers set, Python forgets what a full disk did not take of a text.
                encoding = stream.encoding
                stream = io.TextIOWrapper(io.BufferedWriter(stream.detach()), encoding, line_buffering=True)
                setattr(sys, name, stream)
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and codecs.lookup(sys.stdin.encoding).name == "ascii":
        sys.stdin.reconfigure(encoding="utf-8")
    if os.environ.get("XDG_CACHE_HOME") == "":
        del os.environ["XDG_CACHE_HOME"]  # as if it were not set, says its specification; some take it for the folder
    if not os.path.isabs(os.path.expanduser("~")):  # noqa: PTH111, PTH117 - pathlib raises an exception
        home = Path(tempfile.gettempdir(), f"genius-lite-{os.getuid() if hasattr(os, 'getuid') else ''}")
        os.environ["HOME"] = str(home)


def fault_line(error: BaseException) -> str | None:
    """Say what the machine refused, what is not finite, or why llama.cpp was lost, and what to do; None of others."""
    from genius_lite.sampler.process import SamplerError

    if isinstance(error, SamplerError):
        return f"{error}; {_GOES_ON}"
    for cause in _causes(error):
        if _UNLOADABLE.match(str(cause)):
            return f"llama.cpp does not load ({cause}); genius-lite doctor says what mends that"
        if isinstance(cause, NonFiniteError):
            return str(cause)
        if found := _refused(cause):
            named = f" ({found.filename})" if found.filename else ""
            return f"{(found.strerror or str(found)).lower()}{named}; {_MEND[found.errno]}, and {_GOES_ON}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those of its group, and what it was raised from."""
    seen: BaseException | None = error
    while seen:
        yield seen
        if isinstance(seen, BaseExceptionGroup):
            for one in seen.exceptions:
                yield from _causes(one)
        seen = seen.__cause__


def _refused(error: BaseException) -> OSError | None:
    """Return the error of the system that an exception stands for."""
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, OSError) and error.errno in _MEND and (error.errno != errno.ENOENT or error.filename):
        return error
    said = str(error)
    if (numbered := _NUMBERED.search(said)) and int(numbered[1]) in _MEND:
        return OSError(int(numbered[1]), os.strerror(int(numbered[1])))
    return next((refused for words, refused in _WORDS if words.search(said)), None)
