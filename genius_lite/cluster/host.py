"""What runs on a node of the cluster: a Ray actor that hosts the same worker as the embedded sampler.

A whole search runs here, not only its `extend`s: the driver then exchanges one message a query with a host instead of
some thirty.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import msgspec
import platformdirs

from genius_lite import __version__
from genius_lite.foresight.rollouts import first_of, searches_in_flight
from genius_lite.foresight.search import foresee
from genius_lite.hardware import cores
from genius_lite.machine.engine_settings import engine_settings
from genius_lite.progress import SILENT
from genius_lite.recipe import Foresight, Sampler
from genius_lite.records import Query, Rollout
from genius_lite.rundir.folder import private
from genius_lite.sampler.client import LocalSampler, QueryFailedError, open_sampler
from genius_lite.sampler.messages import Sampling
from genius_lite.weights import gguf_file
from genius_lite.weights.gguf_file import sha256

_KEPT = 4  # files of earlier rounds in a node's cache

encode, decode_query = msgspec.msgpack.encode, msgspec.msgpack.Decoder(Query).decode


@dataclass(frozen=True)
class Work:
    """What a host is there for: the searches of a round.

    Args:
        model, lora: files by their hash; `lora` is empty where none is applied.
        cpus: cores that are the host's.
    """

    model: str
    lora: str
    sampler: Sampler
    foresight: Foresight
    context: int
    key: tuple[int | str, ...]
    cpus: int


class Searched(msgspec.Struct, frozen=True, tag=True):
    rollout: Rollout


class Aside(msgspec.Struct, frozen=True, tag=True):
    """The search was not survived."""

    reason: str


decode_outcome = msgspec.msgpack.Decoder(Searched | Aside).decode


def versions() -> dict[str, str]:
    """What must be the same on every node."""
    return {"genius-lite": __version__, "llama-cpp-python": llama_cpp.__version__}


def other_versions(theirs: dict[str, str]) -> str:
    """What of a node's versions is not as here, in words; empty if all is."""
    ours = versions()
    return ", ".join(f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name])


class NodeHost:
    """The actor. Its methods are called from the driver, by Ray."""

    def __init__(self):
        self._open = AsyncExitStack()
        self._sampler: LocalSampler | None = None
        self._work: Work | None = None

    async def versions(self) -> dict[str, str]:
        return versions()

    async def holds(self, name: str) -> bool:
        """Whether the file of this hash is in the node's cache, whole."""
        path = _cached(name)
        if not path.is_file() or sha256([path]) != name:
            return False
        path.touch()  # those that were not used for longest make room
        return True

    async def receive(self, name: str, part: bytes, *, first: bool, last: bool) -> None:
        """A part of the file of this hash, in order.

        Raises:
            ValueError: the whole is another one.
        """
        with private():
            path = _cached(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")  # several machines may share a home folder
            with partial.open("wb" if first else "ab") as file:
                file.write(part)
            if not last:
                return
            if (found := sha256([partial])) != name:
                partial.unlink()
                raise ValueError(f"a file arrived as {found}, not as {name}")
            partial.rename(path)
        for old in sorted(path.parent.glob("*.gguf"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)

    async def open(self, work: Work) -> int:
        """Start the worker; the searches that it takes at once.

        Raises:
            UserError: the model does not load with the recipe's settings.
            SamplerError: the worker ends while it loads the model.
        """
        cfg = work.sampler
        if cfg.threads == "auto":
            cfg = cfg.model_copy(update={"threads": min(cores(), work.cpus)})
        model = _cached(work.model)
        engine = engine_settings(cfg, gguf_file.read(model), work.context, SILENT)
        engine = msgspec.structs.replace(engine, lora=str(_cached(work.lora)) if work.lora else "")
        logs = platformdirs.user_log_path("genius-lite")
        with private():
            logs.mkdir(parents=True, exist_ok=True)
            opened = open_sampler(
                model, engine, Sampling.of(work.foresight), logs / "node.log", patience=cfg.watchdog, say=print
            )
            self._sampler = await self._open.enter_async_context(opened)
        self._work = work
        return searches_in_flight(engine.slots, work.foresight)

    async def search(self, query: bytes) -> bytes:
        """The outcome of a query's search, both as MessagePack.

        Raises:
            SamplerError: this node samples no more.
        """
        assert self._work and self._sampler
        asked = decode_query(query)
        try:
            return encode(
                Searched(await foresee(asked, self._sampler, self._work.foresight, (*self._work.key, asked.id)))
            )
        except ExceptionGroup as failures:
            cause = first_of(failures)
            if not isinstance(cause, QueryFailedError):
                raise cause from None  # SamplerErrors of a task group have nothing to add to the first one
        return encode(Aside(str(cause)))

    async def close(self) -> None:
        """End the worker."""
        await self._open.aclose()


def _cached(name: str) -> Path:
    """Where the file of this hash lies on this machine. Raises ValueError if it is no hash."""
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"{name!r} is no SHA-256")
    return platformdirs.user_cache_path("genius-lite") / "models" / f"{name}.gguf"
