"""Measurements of this machine, remembered in the user's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import llama_cpp
import msgspec
import platformdirs

from genius_lite import __version__
from genius_lite.hardware import cores, cpu_name, gpus
from genius_lite.rundir.folder import private

T = TypeVar("T")


def recall(what: str, key: object, kind: type[T]) -> T | None:
    """Return what was measured under this key, on this machine and with these versions; None if nothing was."""
    file = _file(what, key)
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except msgspec.DecodeError:
        return None  # of another version of the record, or cut short; it is measured again


def remember(what: str, key: object, found: msgspec.Struct) -> None:
    """Keep a measurement."""
    file = _file(what, key)
    partial = file.with_suffix(".partial")
    with private():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(found))
    partial.replace(file)


def _file(what: str, key: object) -> Path:
    machine = (cpu_name(), cores(), [gpu.name for gpu in gpus()])
    llama = (llama_cpp.__version__, llama_cpp.llama_print_system_info())  # and how it was compiled
    whole = repr((what, key, machine, llama, __version__))
    name = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("genius-lite") / "measurements" / f"{what}-{name}.json"
