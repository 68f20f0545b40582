"""`ollama create`: Ollama takes an export in under a name, where its program is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from genius_lite.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,2}(:[A-Za-z0-9][\w.-]*)?")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # spinners and colours
_GET = "get it from https://ollama.com, and"


def check_name(name: str, kinds: int) -> None:
    """Refuse a name that Ollama would not take, before anything is written.

    Args:
        kinds: how many types are exported; of several each becomes a tag.

    Raises:
        UserError: it is none, or has a tag of its own beside several types.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--create {name}: a model of Ollama is called NAME or NAME:TAG, as in --create my-model")
    if kinds > 1 and ":" in name:
        raise UserError(f"--create {name}: each --type becomes a tag; give the name without one")


def commands(name: str, folder: Path) -> list[list[str]]:
    """Return what makes the models of an export: one command for each Modelfile, whose type becomes the tag."""
    files = sorted(folder.glob("Modelfile*"))
    tags = [f":{file.suffix[1:].lower()}" if len(files) > 1 else "" for file in files]
    return [["ollama", "create", name + tag, "-f", str(file)] for file, tag in zip(files, tags, strict=True)]


def create(name: str, folder: Path) -> list[str]:
    """Have Ollama take an exported folder in, and return the names of its models there.

    Raises:
        UserError: the program is not there, or fails; the message has the command, and what Ollama said.
    """
    made, program = list[str](), shutil.which("ollama")
    for command in commands(name, folder):
        typed = shlex.join(command)
        if program is None:
            raise UserError(f"ollama is not installed here; {_GET} type: {typed}")
        try:
            done = subprocess.run([program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as e:
            raise UserError(f"{program} cannot be started: {e.strerror or e}; {_GET} type: {typed}") from None
        if done.returncode:
            told = _words(done.stderr) or _words(done.stdout) or f"exit code {done.returncode}"
            before = f" ({', '.join(made)} is made)" if made else ""
            raise UserError(f"{typed}: {told}{before}")
        made.append(command[2])
    return made


def _words(output: bytes) -> str:
    """Return what a program said in the end: its last line that names an error, or its last one."""
    text = _CONTROL.sub("", output.decode("utf-8", "replace")).replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.casefold().startswith("error")]
    return next(iter(reversed(errors or lines)), "")
