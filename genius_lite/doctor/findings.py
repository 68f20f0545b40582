"""What doctor says of a part of this machine, and the commands that mend it."""

from __future__ import annotations

import sys
from importlib import resources
from importlib.util import find_spec
from typing import Literal

import msgspec
from packaging.utils import canonicalize_name

Level = Literal["stops", "slows", "note"]


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and a shell command that mends it (or a sentence, where none does).

    `stops`: a run cannot work; `slows`: it can, but with less speed or room; `note`: good to know.
    """

    level: Level
    what: str
    mend: str


class Finding(msgspec.Struct, frozen=True):
    """A line about a part of this machine, empty where there is nothing to say but a problem."""

    label: str
    line: str
    problem: Problem | None = None


def pins() -> dict[str, str]:
    """Return the versions that everything was tested with, of constraints.txt."""
    lines = resources.files("genius_lite").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in pinned}


def install(arguments: str) -> str:
    """Return the command that installs into this environment, activated or not: its pip, or uv, which puts none in."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return f"{python} -m pip install {arguments}" if find_spec("pip") else f"uv pip install -p {python} {arguments}"
