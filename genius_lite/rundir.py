"""The run folder: atomic stages, an append-only log, one process at a time.

A stage is built under `NAME.partial`, flushed to disk and renamed: its final name existing means that it is
done. Running the same recipe again therefore goes on where the last run stopped, wherever that was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import filelock
import msgspec

from genius_lite.errors import UserError

T = TypeVar("T")
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

    def build(self, name: str, fn: Callable[[Path], None]) -> Path:
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
        path = self.build(name, lambda p: write_text(p, json.dumps(fn(), indent=2, ensure_ascii=False) + "\n"))
        return json.loads(path.read_text(encoding="utf-8"))

    def build_records(self, name: str, fn: Callable[[], list[T]], kind: type[T]) -> list[T]:
        """A stage that is a list of records, one JSON line each; returns the records."""

        def write(path: Path) -> None:
            path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in fn()))

        return read_records(self.build(name, write), kind)


class OpenRun(RunDir):
    """A run folder held by this process: `with OpenRun(path, identity) as folder`.

    Args:
        identity: what a later run must share with the one that made the folder.

    Raises:
        UserError: the folder belongs to another recipe, is in use, or is no run folder.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        super().__init__(path)
        self.identity = identity
        self.lock = filelock.FileLock(path / "lock", timeout=0)

    def __enter__(self) -> OpenRun:
        recorded = self.path / "recipe.json"
        if self.path.exists() and not recorded.exists() and {p.name for p in self.path.iterdir()} - {"lock"}:
            raise UserError(f"{self.path} holds other files and is no run folder; name another `out`")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise UserError(f"{self.path} is in use by another process; wait for it or name another `out`") from None
        try:
            held = self.build_json("recipe.json", lambda: self.identity)
            if changed := _difference(held, self.identity):
                raise UserError(f"{self.path} was made by another recipe ({changed}); name another `out`, or delete it")
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None):
        self.lock.release()


class RecordLog(Generic[T]):
    """An append-only file of records, each on disk before `append` returns.

    A last line that a crash cut short is dropped when the log is opened.

    Raises:
        UserError: a line before the last is damaged.
    """

    def __init__(self, path: Path, kind: type[T]):
        self.path = path
        if path.exists():
            intact = path.read_bytes().rfind(b"\n") + 1
            if intact < path.stat().st_size:
                os.truncate(path, intact)
        self.records = read_records(path, kind) if path.exists() else []
        self._file = path.open("ab")

    def append(self, record: T) -> None:
        """Write one record and wait until the disk has it."""
        self._file.write(msgspec.json.encode(record) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def close(self) -> None:
        self._file.close()


def read_records(path: Path, kind: type[T]) -> list[T]:
    """The records of a JSON-lines file that genius-lite wrote.

    Raises:
        UserError: a line is damaged; it is named.
    """
    return list(_records(path, kind))


def _records(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                raise UserError(f"{path}:{number}: damaged record ({e}); delete the line to sample it again") from None


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; a link itself, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold; `needed` in bytes.

    Raises:
        UserError: too little space is free.
    """
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
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
