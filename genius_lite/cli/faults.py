"""What the machine refuses, in one line: full disks, limits of processes, files that nobody may read.

It may come out of task groups, and out of libraries that have exceptions of their own for it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from genius_lite.errors import NonFiniteError

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
    (
        re.compile(
            r"can't (start new thread|allocate)|[Uu]nable to mmap|[Cc]annot allocate memory|failed to map segment"
        ),
        _NO_MEMORY,
    ),
    (re.compile("No usable temporary directory"), OSError(errno.EACCES, "no temporary files can be written", "TMPDIR")),
)
_UNLOADABLE = re.compile(r"Failed to load shared library|Shared library with base name")  # says llama-cpp-python


def fault_line(error: BaseException) -> str | None:
    """Say what the machine refused, what is not finite, or why llama.cpp was lost, and what to do; None of others."""
    from genius_lite.sampler.process import SamplerError

    if isinstance(error, SamplerError):
        return f"{error}; {_GOES_ON}"
    if lost := next((str(cause) for cause in _causes(error) if _UNLOADABLE.match(str(cause))), None):
        return f"llama.cpp does not load ({lost}); genius-lite doctor says what mends that"
    if diverged := next((cause for cause in _causes(error) if isinstance(cause, NonFiniteError)), None):
        return str(diverged)
    found = next((refused for cause in _causes(error) if (refused := _refused(cause))), None)
    if found is None:
        return None
    named = f" ({found.filename})" if found.filename else ""
    return f"{(found.strerror or str(found)).lower()}{named}; {_MEND[found.errno]}, and {_GOES_ON}"


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
