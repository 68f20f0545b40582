"""Take from another run what this one would make just the same, so that an ablation pays only for what differs.

What decides a stage are some keys of the run's identity (`recipe.json`). Where they are equal, the random numbers are
too, and the stage is the same but for rounding.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from genius_lite.errors import UserError
from genius_lite.rundir import RunDir, refuse_links

_BASE = ("model", "weights")
_ASKED = ("model", "watched", "seed", "tasks", "foresight.max_tokens", "evaluate")
_SAMPLED = ("model", "queries", "seed", "foresight")
_DECIDED_BY = {
    "full-precision": _BASE,
    "master": _BASE,
    "round-0/evaluation": _ASKED,
    "round-1/rollouts.jsonl": _SAMPLED,
}
_NO_PART = {"rollback", "patience"}  # of `evaluate`: they decide what follows, not what is asked


def take(folder: RunDir, identity: dict[str, Any], other: Path) -> list[str]:
    """Link or copy into a run's folder those stages of `other` that would come out the same and are not there yet.

    Finished files are never written again, so links do; the log of the rollouts is one that grows, and is copied.

    Returns:
        The names of what was taken.

    Raises:
        UserError: `other` is no run folder, or has a link in it.
    """
    recorded = other / "recipe.json"
    if not recorded.is_file():
        raise UserError(f"{other} is no run folder; --reuse names the `out` of another run")
    refuse_links(other)
    theirs = json.loads(recorded.read_text(encoding="utf-8"))
    taken = []
    for name, keys in _DECIDED_BY.items():
        source = other / name
        if not source.exists() or (folder / name).exists():
            continue
        if any(_at(theirs, key) != _at(identity, key) for key in keys):
            continue
        room = folder.sub(name.split("/")[0]) if "/" in name else folder
        room.build(source.name, lambda out, source=source: _bring(source, out))
        taken.append(name)
    return taken


def _at(identity: dict[str, Any], dotted: str) -> Any:
    found: Any = identity
    for key in dotted.split("."):
        found = found.get(key)
    return {key: value for key, value in found.items() if key not in _NO_PART} if dotted == "evaluate" else found


def _bring(source: Path, out: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, out, copy_function=_link)
    else:
        shutil.copyfile(source, out)


def _link(source: str, out: str) -> None:
    """A second name of the same file, or a copy where the file systems differ or know no links."""
    try:
        os.link(source, out)
    except OSError:
        shutil.copyfile(source, out)
