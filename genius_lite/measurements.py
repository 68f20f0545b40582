"""Measurements of this machine, remembered in the user's cache."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import llama_cpp
import msgspec

from genius_lite import __version__
from genius_lite.hardware import cores, cpu_name, gpus
from genius_lite.rundir.disk import cache_folder, put
from genius_lite.rundir.folder import private

T = TypeVar("T")


def recall(what: str, key: object, kind: type[T]) -> T | None:
    """Return what was measured under this key, on this machine and with these versions; None if nothing was."""
    try:
        return msgspec.json.decode(_file(what, key).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None  # there is none, nobody may read it, or it is another version's: it is measured again


def remember(what: str, key: object, found: msgspec.Struct) -> None:
    """Keep a measurement, where there is a cache that can be written: without one each process measures for itself."""
    file = _file(what, key)
    with private(), suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file, msgspec.json.encode(found), shared=True)


def _file(what: str, key: object) -> Path:
    machine = (cpu_name(), cores(), [gpu.name for gpu in gpus()])
    llama = (llama_cpp.__version__, llama_cpp.llama_print_system_info())  # and how it was compiled
    whole = repr((what, key, machine, llama, __version__))
    name = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return cache_folder() / "measurements" / f"{what}-{name}.json"
