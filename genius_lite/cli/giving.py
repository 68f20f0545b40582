"""Where an export goes beside a folder: to a repository of the hub, and into Ollama."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import typer

from genius_lite.errors import Stopped, UserError
from genius_lite.export import hub
from genius_lite.export.bundle import tag_of
from genius_lite.export.private import refuse_private
from genius_lite.progress import Progress
from genius_lite.rundir.disk import scratch
from genius_lite.text import visible

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,2}(:[A-Za-z0-9][\w.-]*)?")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # spinners and colours


@dataclass(frozen=True)
class Giving:
    """Where an export goes: into the folder `to`, to `push` (`hf:OWNER/REPO`) of the hub, into Ollama as `create`."""

    to: Path | None
    push: str | None
    public: bool
    dry_run: bool
    create: str | None

    def check(self, to_format: str, kinds: int) -> None:
        """Check what a command line asks for, with so many quantization types, before anything is made for it.

        Raises:
            UserError: it cannot be done: options that do not go together, no token, a public repository, no Ollama.
        """
        if not (self.to or self.push or self.create):
            raise UserError("say where it goes: --to FOLDER, --push hf:OWNER/REPO, or --create NAME")
        if (self.public or self.dry_run) and not self.push:
            raise UserError("--public and --dry-run are for --push hf:OWNER/REPO")
        if self.create is not None:
            if to_format != "ollama":
                raise UserError("--create is for --format ollama")
            if self.dry_run:
                raise UserError("--dry-run makes nothing; leave --create out")
            if not _NAME.fullmatch(self.create):
                named = "a model of Ollama is called NAME or NAME:TAG, as in --create my-model"
                raise UserError(f"--create {self.create}: {named}")
            if kinds > 1 and ":" in self.create:
                raise UserError(f"--create {self.create}: each --type becomes a tag; give the name without one")
            if not self.to and not shutil.which("ollama"):
                later = f"ollama create {shlex.quote(self.create)} -f FOLDER/Modelfile"
                raise UserError(f"ollama is not installed; write a folder with --to, and where it is, type: {later}")
        if (repository := self.repository) and not self.dry_run:
            hub.require_token(repository)
            remote = hub.look(repository)
            hub.require_privacy(remote, repository, self.public)
            if self.public and remote and remote.private:
                print(visible(f"hf:{repository} is there and private, and stays so; its settings there change that"))

    @cached_property
    def repository(self) -> str | None:
        """`OWNER/REPO`, if it is uploaded; a UserError where `push` names none."""
        return hub.repository_named(self.push) if self.push else None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give the folder to write to; one that nobody named goes with the block."""
        if self.to:
            yield self.to
        else:
            with scratch() as temporary:
                yield temporary / "export"

    def give(self, folder: Path, run: Path, message: str, progress: Progress) -> None:
        """Give away what was written, with `message` for the commit: first to Ollama, which is on this machine.

        Raises:
            UserError: something of it failed; the message says what is where.
        """
        kept = f"; {self.to} is written" if self.to else ""
        try:
            if self.create:
                for name in _create(self.create, folder):
                    print(visible(f"in Ollama: ollama run {shlex.quote(name)}"))
            if self.repository:
                self._push(self.repository, folder, run, message, progress)
        except UserError as e:
            raise UserError(f"{e}{kept}") from None

    def _push(self, repository: str, folder: Path, run: Path, message: str, progress: Progress) -> None:
        refuse_private(folder, run, repository)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        size = sum(path.stat().st_size for path in files)
        if self.dry_run:
            for line in _would_go(repository, self.public, files, size):
                print(visible(line))
            return
        try:
            with progress.stage("upload", size, "MB", 1e-6) as advance:
                address = hub.push(folder, repository, message, public=self.public, advance=advance)
        except Stopped as e:
            print(visible(str(e)), file=sys.stderr)
            raise typer.Exit(130) from None
        print(visible(f"pushed: {address}"))


def _would_go(repository: str, public: bool, files: list[Path], size: int) -> Iterator[str]:
    """Yield what a push would do: the repository, and each file with its bytes; nothing of it needs the hub."""
    try:
        remote = hub.look(repository, outcome="what would go is listed all the same")
    except UserError as e:
        why = str(e).removeprefix(f"hf:{repository}: ")
        remote, standing = None, f"whether it is there is not known: {why}"
    else:
        made = f"not there, as far as the token sees; it would be made, {'public' if public else 'private'}"
        standing = f"there already, {'private' if remote.private else 'public'}" if remote else made
    yield f"hf:{repository}: {standing}"
    if remote and not remote.private and not public:
        yield "it is public, so that it takes --public too"
    digests = remote.digests if remote else {}
    for file in files:
        same = "  there already" if remote and remote.holds(file) else "  replaces another one"
        yield f"  {file.name}  {file.stat().st_size:,} bytes{same if file.name in digests else ''}"
    if stays := sorted(set(digests) - {file.name for file in files} - {".gitattributes"}):
        yield f"what else is there stays: {', '.join(stays)}"
    yield f"{len(files)} files, {size:,} bytes; nothing private was found in them, and nothing is uploaded (--dry-run)"


def _create(name: str, folder: Path) -> list[str]:
    """Have Ollama take an exported folder in, and return the names of its models: of several types each is a tag.

    Raises:
        UserError: the program is not there, or fails; the message has the command, and what Ollama said.
    """
    made, program = list[str](), shutil.which("ollama") or "ollama"
    for file in sorted(folder.glob("Modelfile*")):
        tagged = name + tag_of(file.name)
        arguments = ["create", tagged, "-f", str(file)]
        typed = shlex.join(["ollama", *arguments])
        try:
            done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as e:
            absent = isinstance(e, FileNotFoundError)
            why = "ollama is not installed here" if absent else f"ollama cannot be started ({e})"
            raise UserError(f"{why}; get it from https://ollama.com, and type: {typed}") from None
        if done.returncode:
            told = _last_line(done.stderr) or _last_line(done.stdout) or f"exit code {done.returncode}"
            before = f" ({', '.join(made)} is made)" if made else ""
            raise UserError(f"{typed}: {told}{before}")
        made.append(tagged)
    return made


def _last_line(output: bytes) -> str:
    """Return what a program said in the end: its last line that names an error, or its last one."""
    text = _CONTROL.sub("", output.decode("utf-8", "replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.casefold().startswith("error")]
    return next(iter(reversed(errors or lines)), "")
