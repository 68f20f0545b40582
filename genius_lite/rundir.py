"""The run folder: atomic stages, an append-only log, one process at a time.

A stage is built under `NAME.partial`, flushed to disk and renamed: its final name existing means that it is
done. Running the same recipe again therefore goes on where the last run stopped, wherever that was.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import filelock
import msgspec

from genius_lite.errors import NonFiniteError, UserError
from genius_lite.lines import Lines, line_bounds, read_records, write_records

T = TypeVar("T")
TRACKING = "tracking"  # in a run: the files of experiment trackers
ROUNDED, BASELINE = "rounded", "base.gguf"  # in a run: the base model in the types of the rounds, if not its own
FAILED_FILE = "failed.jsonl"  # in a round: queries that the sampler does not survive
IMPORTANCE_FILE = "importance.safetensors"  # beside an adapter: squared activations by learner weight


class RunDir:
    """A folder of stages, `runs/NAME`; rounds are folders of stages inside it."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunDir:
        """A folder of stages inside this one."""
        (self.path / name).mkdir(exist_ok=True)
        return RunDir(self.path / name)

    def build(self, name: str, fn: Callable[[Path], object]) -> Path:
        """The stage `name`, made by `fn(partial_path)` unless it is there already.

        `fn` writes a file or a folder at the path it is given. If it raises, the final name does not appear.
        """
        final, partial = self.path / name, self.path / f"{name}.partial"
        if final.exists():
            return final
        remove(partial)
        fn(partial)
        for file in [*partial.rglob("*"), partial]:
            _sync(file)
        partial.rename(final)
        _sync(self.path)
        return final

    def build_json(self, name: str, fn: Callable[[], Any]) -> Any:
        """A stage that is one JSON document; returns the document."""
        path = self.build(name, lambda p: write_json(p, fn(), indent=2))
        return json.loads(path.read_text(encoding="utf-8"))

    def build_records(self, name: str, fn: Callable[[], list[T]], kind: type[T]) -> list[T]:
        """A stage that is a list of records, one JSON line each; returns the records."""

        return read_records(self.build(name, lambda path: write_records(path, fn())), kind)


class OpenRun(RunDir):
    """A run folder held by this process: `with OpenRun(path, identity) as folder`.

    What is created meanwhile, here or elsewhere, is for its user alone, whatever the umask: questions and responses may
    be personal. A folder that was there before keeps its mode, which somebody chose.

    Args:
        identity: what a later run must share with the one that made the folder.

    Raises:
        UserError: the folder belongs to another recipe, is in use, is no run folder, or has a link in it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        super().__init__(path)
        self.identity = identity
        self.lock = filelock.FileLock(path / "lock", timeout=0)

    def __enter__(self) -> OpenRun:
        with ExitStack() as stack:
            stack.enter_context(private())
            self._hold(stack)
            self._held = stack.pop_all()
        return self

    def _hold(self, stack: ExitStack) -> None:
        recorded = self.path / "recipe.json"
        if self.path.exists() and not recorded.exists() and {p.name for p in self.path.iterdir()} - {"lock"}:
            raise UserError(f"{self.path} holds other files and is no run folder; name another `out`")
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(self.lock)
        except filelock.Timeout:
            raise UserError(f"{self.path} is in use by another process; wait for it or name another `out`") from None
        refuse_links(self.path)
        held = self.build_json("recipe.json", lambda: self.identity)
        if changed := _difference(held, self.identity):
            raise UserError(f"{self.path} was made by another recipe ({changed}); name another `out`, or delete it")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        self._held.close()


class RecordLog(Generic[T]):
    """An append-only file of records, each on disk before `append` returns.

    A last line that a crash cut short is dropped when the log is opened. `records` are read from the file when they are
    asked for; a line before the last that is damaged is named then, as a UserError.
    """

    def __init__(self, path: Path, kind: type[T]):
        self.path = path
        self._bounds = line_bounds(path) if path.exists() else array("q", [0])
        self.records = Lines(path, kind, self._bounds)
        self._file = path.open("ab", buffering=0)
        self._drop_torn()

    def append(self, record: T) -> None:
        """Write one record and wait until the disk has it; one that the disk does not take whole is taken back."""
        line = msgspec.json.encode(record) + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._drop_torn()
            raise
        self._bounds.append(self._bounds[-1] + len(line))

    def close(self) -> None:
        self._file.close()

    def _drop_torn(self) -> None:
        if self.path.stat().st_size > self._bounds[-1]:
            os.truncate(self.path, self._bounds[-1])


def rounded_base(run: Path) -> Path | None:
    """The base model in the types of a run's rounds, if the run made a file of it."""
    made = run / ROUNDED / BASELINE
    return made if made.exists() else None


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; a link itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def private() -> Iterator[None]:
    """What this process creates in the block is for its user alone: files 0600, folders 0700, whatever the umask."""
    earlier = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(earlier)


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the mode that the umask asks for; safetensors are written 0600 under any."""
    os.umask(mask := os.umask(0o077))
    for file in (p for p in folder.iterdir() if p.is_file() and not p.is_symlink()):
        file.chmod(0o666 & ~mask)


def refuse_links(run: Path) -> None:
    """Refuse a run folder that leads out of itself, as one from an archive may. Only experiment trackers make links.

    Raises:
        UserError: there is a symbolic link in it.
    """
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            if (path := Path(folder, name)).is_symlink():
                raise UserError(f"{path} is a link; a run folder holds none: put in its place what it points to")
        if Path(folder) == run and TRACKING in folders:
            folders.remove(TRACKING)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int = 0) -> None:
    """A JSON document. Infinity, for which JSON has no word, is written as 1e999: Python and JavaScript read that so.

    Raises:
        NonFiniteError: a number is NaN; where it stands is named.
    """
    encoded = msgspec.json.encode(_for_json(msgspec.to_builtins(value), path.name.removesuffix(".partial")))
    path.write_bytes(msgspec.json.format(encoded, indent=indent) + b"\n")


def _for_json(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(item, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_for_json(item, f"{where}, {number}") for number, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise NonFiniteError(f"{where}: not a number")
        return msgspec.Raw(b"1e999" if value > 0 else b"-1e999")
    if isinstance(value, int) and value.bit_length() > 63:  # more than msgspec writes by itself
        return msgspec.Raw(str(value).encode())
    return value


def free_disk(folder: Path) -> int:
    """Free bytes of the disk that a folder is, or will be, on."""
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    return shutil.disk_usage(existing).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold; `needed` in bytes.

    Raises:
        UserError: too little space is free.
    """
    free = free_disk(folder)
    if free < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; make room or move `out`"
        )


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk. Windows cannot open folders and does not need to."""
    if path.is_dir() and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _difference(old: Any, new: Any, at: str = "") -> str:
    """The first key that differs, as `foresight.beams: 2 there, 3 here`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            if found := _difference(old.get(key), new.get(key), f"{at}.{key}".lstrip(".")):
                return found
        return ""
    return "" if old == new else f"{at}: {old} there, {new} here"
