"""What a process is started into, made such that everything else may rely on it: streams, home, modules."""

from __future__ import annotations

import codecs
import io
import os
import sys
import tempfile
from pathlib import Path


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
