"""What was found out on this machine, remembered in the user's cache: measurements, and what a model answered."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import llama_cpp
import msgspec

from genius_lite import __version__
from genius_lite.hardware.gpus import gpus
from genius_lite.hardware.system import cores, cpu_name
from genius_lite.records import prepared
from genius_lite.rundir.disk import cache_folder, put
from genius_lite.rundir.folder import private

T = TypeVar("T")


def recall(what: str, key: object, kind: type[T]) -> T | None:
    """Return what was found under this key, on this machine and with these versions; None if nothing was."""
    file = _file(what, key)
    try:
        if os.name == "posix" and file.stat().st_uid != os.geteuid():
            return None  # below a folder for all, such as the system's temporary one, anybody may have put it there
        found = msgspec.json.decode(file.read_bytes(), type=prepared(kind))
    except (OSError, msgspec.DecodeError):
        return None  # there is none, nobody may read it, or it is another version's: it is found out again
    with suppress(OSError):
        file.touch()  # what is used stays the longest
    return found


def remember(what: str, key: object, found: msgspec.Struct, most: int | None = None) -> None:
    """Keep a finding, where there is a cache that can be written: without one each process finds out for itself.

    Args:
        most: bytes that all findings of this name may take; those that were not used for longest go first.
    """
    file, content = _file(what, key), msgspec.json.encode(found)
    if most is not None and len(content) > most:
        return
    with private(), suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file, content, shared=True)
        if most is not None:
            _limit(file.parent.glob(f"{what}-*.json"), most)


def _limit(files: Iterable[Path], most: int) -> None:
    found = sorted(((file.stat(), file) for file in files), key=lambda one: one[0].st_mtime_ns, reverse=True)
    total = 0
    for known, file in found:
        total += known.st_size
        if total > most:
            file.unlink(missing_ok=True)


def _file(what: str, key: object) -> Path:
    machine = (cpu_name(), cores(), [gpu.name for gpu in gpus()])
    llama = (llama_cpp.__version__, llama_cpp.llama_print_system_info(), _build())  # and how it was compiled
    whole = repr((what, key, machine, llama, __version__))
    name = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return cache_folder() / "measurements" / f"{what}-{name}.json"


def _build() -> list[tuple[str, int, int]]:
    """Describe llama.cpp's libraries, wherever LLAMA_CPP_LIB_PATH has them: a new one's version may be the same."""
    files = sorted(Path(llama_cpp.llama_cpp._base_path).glob("*"))
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
