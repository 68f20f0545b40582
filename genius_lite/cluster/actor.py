"""The Ray actor on a node, which hosts the same worker as the embedded sampler.

A whole search runs here, not only its `extend`s: driver and host then exchange one message a query instead of thirty.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec

from genius_lite import __version__
from genius_lite.data.sandbox import forget_secrets
from genius_lite.foresight.rollouts import first_of, searches_in_flight
from genius_lite.foresight.search import foresee
from genius_lite.hardware.system import cores
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.progress import SILENT
from genius_lite.recipe import Foresight, Sampler
from genius_lite.records import Query, Rollout
from genius_lite.rundir.disk import cache_folder, scratch
from genius_lite.rundir.folder import private
from genius_lite.sampler.client import LocalSampler, open_sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import sha256

_CACHED_FILES = 4  # of earlier rounds too


@dataclass(frozen=True)
class HostSettings:
    """What the hosts of a round search with; `model` and `lora` (or empty) are hashes of files."""

    model: str
    lora: str
    sampler: Sampler
    foresight: Foresight
    context: int
    key: tuple[int | str, ...]


def versions() -> dict[str, str]:
    """Return what must be the same on every node."""
    return {"genius-lite": __version__, "llama-cpp-python": llama_cpp.__version__}


def version_differences(theirs: dict[str, str]) -> str:
    """Say which of a node's versions differ from those here, if any."""
    ours = versions()
    return ", ".join(f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name])


class HostActor:
    """The actor. Its methods are called from the driver, by Ray."""

    def __init__(self):
        forget_secrets()
        self._open = AsyncExitStack()
        self._sampler: LocalSampler | None = None
        self._settings: HostSettings | None = None

    async def versions(self) -> dict[str, str]:
        return versions()

    async def missing(self, names: list[str]) -> list[str]:
        """Return those of these hashes whose file is not in the node's cache, whole."""
        lacking = [name for name in names if not _cached(name).is_file() or sha256([_cached(name)]) != name]
        for name in {*names} - {*lacking}:
            _cached(name).touch()  # those that were not used for longest make room
        return lacking

    async def fetch(self, name: str, parts: list[Any]) -> None:
        """Write the file of this hash to the node's cache, one part in memory at a time.

        Args:
            parts: references to its bytes in Ray's object store, in order.

        Raises:
            ValueError: the whole has another hash.
        """
        path = _cached(name)
        with private():
            path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent) as folder:  # several machines may share a home folder
            arriving = folder / path.name
            with private(), arriving.open("wb") as file:
                for part in parts:
                    file.write(await part)
            if (found := sha256([arriving])) != name:
                raise ValueError(f"a file arrived as {found}, not as {name}")
            arriving.replace(path)
        _make_room(path.parent)

    async def open(self, settings: HostSettings, cpus: int) -> int:
        """Start the worker, with threads for so many CPUs; return how many searches it takes at once.

        Raises:
            UserError: the model does not load with the recipe's settings.
            SamplerError: the worker ends while it loads the model.
        """
        cfg = settings.sampler
        if cfg.threads == "auto":
            cfg = cfg.model_copy(update={"threads": min(cores(), cpus)})
        model = _cached(settings.model)
        # It may measure, which takes a loop of its own, and this one answers meanwhile.
        engine = await asyncio.to_thread(engine_settings, cfg, gguf_file.read(model), settings.context, SILENT)
        engine = msgspec.structs.replace(engine, lora=str(_cached(settings.lora)) if settings.lora else "")
        sampling = Sampling.of(settings.foresight)
        logs = cache_folder() / "log"
        with private():
            logs.mkdir(parents=True, exist_ok=True)
            opened = open_sampler(model, engine, sampling, logs / "node.log", say=print)
            self._sampler = await self._open.enter_async_context(opened)
        self._settings = settings
        return searches_in_flight(engine.slots, settings.foresight)

    async def search(self, query: Query) -> Rollout:
        """Search one query.

        Raises:
            QueryFailedError: the worker does not survive this search.
            SamplerError: this node samples no more.
        """
        assert self._settings and self._sampler
        key = (*self._settings.key, query.id)
        try:
            return await foresee(query, self._sampler, self._settings.foresight, key)
        except ExceptionGroup as failures:
            raise first_of(failures) from None  # SamplerErrors of a task group have nothing to add to the first one


def _make_room(folder: Path) -> None:
    """Delete the models that were not used for longest; other nodes may do the same in the same folder."""
    used: dict[Path, float] = {}
    for file in folder.glob("*.gguf"):
        with suppress(FileNotFoundError):
            used[file] = file.stat().st_mtime
    for file in sorted(used, key=used.__getitem__)[:-_CACHED_FILES]:
        file.unlink(missing_ok=True)


def _cached(name: str) -> Path:
    """Return where the file of this hash lies on this machine. Raises ValueError if it is no hash."""
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"{name!r} is no SHA-256")
    return cache_folder() / "models" / f"{name}.gguf"
