"""The run folder: atomic stages, an append-only log, one process at a time.

A stage is built under `NAME.partial`, flushed to disk and renamed: its final name existing means that it is
done. Running the same recipe again therefore goes on where the last run stopped, wherever that was.
"""

from __future__ import annotations

import math
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.errors import NonFiniteError, Stopped, UserError
from genius_lite.rundir.disk import put, remove, settled, sync, writing_to
from genius_lite.rundir.documents import read_typed
from genius_lite.rundir.lock import LOCK, MARKER, hold

# A run's files: its identity, the learner's copy of the model (with a note of where that came from), what was chosen,
# what it came to, the exported model, the files of experiment trackers, and what each stage took.
RECIPE, CHECKPOINT, SOURCE = "recipe.json", "hf-checkpoint", "source.json"
BEST, SUMMARY, EXPORT = "best.json", "summary.json", "export"
TRACKING, TRACKED, TIMINGS = "tracking", "tracking.json", "timings.jsonl"  # the second: how far trackers were told
PROGRESS = "progress.json"  # for other terminals
ROUNDED, BASELINE = "rounded", "base.gguf"  # the base model in the types of the rounds, if not its own

# A round's, in the order in which they are made.
ROLLOUTS, FAILED_FILE = "rollouts.jsonl", "failed.jsonl"  # the latter: queries that the sampler does not survive
HOSTS = "hosts.json"  # how many queries each of a cluster answered, of the last process that sampled the round
PAIRS, LEFT_OUT = "pairs.jsonl", "filtered.json"
TRAINING, PRECISION = "training", "precision.json"  # its state, while it goes on; in it, that of the frozen weights
ADAPTER, TRAINED = "adapter", "train.json"  # the latter in the former, as is:
IMPORTANCE = "importance.safetensors"  # squared activations by learner weight
POLICY, QUANTIZED, LORA = "policy.gguf", "quantized.json", "adapter.gguf"
ORIGIN = "origin.json"  # of a later round: the SHA-256 of the policy that samples it, None with an adapter beside it
SAMPLED, STAND_IN = "sampled.json", "stand-in.gguf"  # what it samples from, if another file is faster, and that file
EVALUATION, RESPONSES, SIGNALS = "evaluation", "responses.jsonl", "signals.json"  # the latter two in the first
COOLING = "cooling-{:g}.jsonl"  # of the base model at another temperature, while it is swept
ANSWERS = "answers.jsonl"  # beside it while it is made: the answers so far, a line for each problem
SAID = "said.jsonl"  # so too, of held-out queries
COOLED = "cooled.json"  # of the base model: what it does at other temperatures
REPORT = "report.json"

_AT_BIRTH = {LOCK, MARKER, f"{RECIPE}.partial"}  # what a run that was killed at once leaves
_OF_SYSTEMS = (
    *("lost+found", ".DS_Store", "._*", ".Trash*", ".fseventsd", ".Spotlight-V100", ".TemporaryItems", ".nfs*"),
    *(".snapshot*", "Thumbs.db", "desktop.ini", "System Volume Information", "$RECYCLE.BIN"),
)
"""Names that file systems and desktops put into every folder, or volume."""


def round_name(number: int | str) -> str:
    """Name the folder of a round; round 0 is the base model."""
    return f"round-{number}"


class RunDir:
    """A folder of stages, `runs/NAME`; rounds are folders of stages inside it."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> RunDir:
        """Make a folder of stages inside this one."""
        _make(self.path / name)
        return RunDir(self.path / name)

    def round(self, number: int) -> RunDir:
        return self.sub(round_name(number))

    def build(self, name: str, fn: Callable[[Path], object]) -> Path:
        """Have `fn(partial_path)` make the stage `name`, a file or a folder, unless it is there already.

        If it raises, the final name does not appear. A stage of a folder inside this one is `FOLDER/NAME`.

        Raises:
            OSError: the disk takes no more, in whatever words a library says so.
        """
        final, partial = self.path / name, self.path / f"{name}.partial"
        if final.exists():
            return final
        _make(final.parent)
        with writing_to(final.parent):
            remove(partial)
            fn(partial)
            for file in [*partial.rglob("*"), partial]:
                sync(file)
            settled(lambda: partial.rename(final))
            sync(final.parent)
        return final

    def build_json(self, name: str, fn: Callable[[], Any], kind: Any = Any) -> Any:
        """Make a stage that is one JSON document; return the document, as a record of this kind.

        Raises:
            UserError: what is there already is damaged, or another kind of document.
        """
        path = self.build(name, lambda p: write_json(p, fn(), indent=2))
        if (found := read_typed(path, kind)) is None:
            raise UserError(f"{path} is damaged; delete it to have it made anew")
        return found

    def put_json(self, name: str, value: Any) -> None:
        """Write a JSON document beside a stage, in place of an older one: either is there, whole."""
        with writing_to(self.path):
            put(self.path / name, json_bytes(value, name, indent=2))


@contextmanager
def open_folder(path: Path, identity: dict[str, Any]) -> Iterator[RunDir]:
    """Hold a run folder, which may be new, for this process alone.

    What is created meanwhile, here or elsewhere, is for its user alone, whatever the umask: questions and responses may
    be personal. A folder that was there before keeps its mode, which somebody chose.

    Args:
        identity: what a later run must share with the one that made the folder.

    Raises:
        UserError: the folder belongs to another recipe, is in use, is no run folder, has a link in it, or is moved away
            while it is held.
    """
    folder = RunDir(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name another `out`")
    if path.exists() and not (path / RECIPE).exists() and (others := foreign_names(path)):
        named = f"{min(others)} and {len(others) - 1} more" if len(others) > 1 else min(others)
        raise UserError(f"{path} holds other files ({named}) and is no run folder; name another `out`")
    with private():
        if not path.exists():
            path.mkdir(parents=True, exist_ok=True)
            sync(path.parent)
        refuse_links(path)  # of which the lock may be one
        with hold(path):
            recorded = folder.build_json(RECIPE, lambda: identity)
            if changed := _difference(recorded, identity):
                again = f" (--reuse {shlex.quote(str(path))} takes there what stays the same)"
                raise UserError(
                    f"{path} was made by another recipe ({changed}); name another `out`"
                    f"{'' if 'shard' in identity else again}, or delete it"
                )
            try:
                yield folder
            except Exception as e:
                if isinstance(e, (UserError, Stopped)) or (path / RECIPE).exists():
                    raise
                raise UserError(
                    f"{path} is not there any more: it was moved or deleted while this went on; the same command goes "
                    "on with its new place as `out`"
                ) from e


def foreign_names(path: Path) -> set[str]:
    """Return the names in a folder, beyond what a run begins with, that the system does not put there."""
    names = {file.name for file in path.iterdir()} - _AT_BIRTH
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in _OF_SYSTEMS)}


@contextmanager
def private() -> Iterator[None]:
    """Keep what this process creates in the block for its user alone: files 0600, folders 0700, whatever the umask."""
    earlier = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(earlier)


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the mode that the umask asks for; safetensors are written 0600 under any."""
    os.umask(mask := os.umask(0o077))
    for file in (p for p in folder.iterdir() if p.is_file() and not p.is_symlink()):
        with suppress(PermissionError, NotImplementedError):  # FAT and CIFS have no modes of their own
            file.chmod(0o666 & ~mask)


def refuse_links(run: Path) -> None:
    """Refuse a run folder that leads out of itself, as one from an archive may. Only experiment trackers make links.

    Raises:
        UserError: there is a symbolic link in it, or what is neither file nor folder: a pipe that is read has no end.
    """
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # a run that goes on replaces its files
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise UserError(f"{path} is a link; a run folder holds none: put in its place what it points to")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise UserError(f"{path} is neither file nor folder; a run folder holds no such thing: delete it")
        if Path(folder) == run and TRACKING in folders:
            folders.remove(TRACKING)


def size_of(run: Path) -> int:
    """Count the bytes of a folder's files."""
    total = 0
    for folder, _, files in os.walk(run):
        for name in files:
            with suppress(FileNotFoundError):  # a run that goes on replaces its files
                total += Path(folder, name).stat().st_size
    return total


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int = 0) -> None:
    """Write a JSON document, with infinity, for which JSON has no word, as 1e999: Python and JavaScript read that so.

    Raises:
        NonFiniteError: a number is NaN; where it stands is named.
    """
    path.write_bytes(json_bytes(value, path.name.removesuffix(".partial"), indent))


def json_bytes(value: Any, name: str, indent: int = 0) -> bytes:
    """Encode a document as `write_json` writes it; `name` stands in its error."""
    encoded = msgspec.json.encode(_for_json(msgspec.to_builtins(value), name))
    return msgspec.json.format(encoded, indent=indent) + b"\n"


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


def _make(folder: Path) -> None:
    """Make a folder whose name a power cut does not take away; a UserError where there is a file of that name."""
    if folder.is_file():
        raise UserError(f"{folder} is a file where a folder belongs; put the folder back, or delete the file")
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def _difference(old: Any, new: Any, at: str = "") -> str:
    """Name the first key that differs, as `foresight.beams: 2 there, 3 here`; empty if none does."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if found := _difference(old.get(key), new.get(key), f"{at}.{key}".lstrip(".")):
                return found
        return ""
    return "" if old == new else f"{at}: {old} there, {new} here"
