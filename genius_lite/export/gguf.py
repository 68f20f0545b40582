"""Export a finished round as a GGUF, at the run's own type or any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.recipe import QuantType
from genius_lite.rundir import remove, require_space
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import SOURCE_FILE, sha256
from genius_lite.weights.policy import policy_bytes, policy_gguf


def finished_rounds(run: Path) -> list[int]:
    """The rounds of a run folder that have a GGUF.

    Raises:
        UserError: not a run folder.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run} is no run folder; name the `out` of a recipe")
    return sorted(int(p.parent.name.removeprefix("round-")) for p in run.glob("round-*/policy.gguf"))


def policy_of(run: Path, number: int | None) -> Path:
    """The GGUF of a run's round; None is its last finished round, 0 the base model.

    Raises:
        UserError: not a run folder, or the round is not finished.
    """
    rounds = finished_rounds(run)
    number = (rounds[-1] if rounds else 0) if number is None else number
    if number == 0:
        return _source(run)
    if number not in rounds:
        done = ", ".join(map(str, rounds)) or "none"
        raise UserError(f"{run}: round {number} is not finished (finished: {done}; 0 is the base model)")
    return run / f"round-{number}" / "policy.gguf"


def export_gguf(
    run: Path, number: int | None, kind: QuantType | None, out: Path, advance: Callable[[int], None]
) -> None:
    """Write a round's GGUF and its checksum to `out`; a `kind` of its own is made from the 16-bit weights.

    Raises:
        UserError: as `policy_of`; or `out` exists, or has no room.
    """
    policy = policy_of(run, number)
    partial = out.with_name(f"{out.name}.partial")
    if out.exists():
        raise UserError(f"{out} exists; name another file, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if kind is None:
            require_space(out.parent, policy.stat().st_size, "the export")
            copy_with_checksum(policy, partial, out.name)
            advance(policy.stat().st_size)
        else:
            source = gguf_file.read(_source(run))
            require_space(out.parent, policy_bytes(source, kind), "the export")
            adapter = None if policy == source.path else policy.parent / "adapter"
            policy_gguf(source, run / "master", adapter, kind, partial, advance)
            write_checksum(partial, out.name)
        partial.with_name(f"{partial.name}.sha256").replace(out.with_name(f"{out.name}.sha256"))
        partial.replace(out)
    finally:
        for leftover in out.parent.glob(f"{partial.name}*"):
            remove(leftover)


def export_bytes(run: Path, number: int | None, kind: QuantType | None) -> int:
    """About how many bytes `export_gguf` writes."""
    if kind is None:
        return policy_of(run, number).stat().st_size
    return policy_bytes(gguf_file.read(_source(run)), kind)


def copy_with_checksum(policy: Path, out: Path, name: str) -> None:
    """Copy a GGUF and write its checksum, for the file name `name`, beside it."""
    shutil.copyfile(policy, out)
    write_checksum(out, name)


def write_checksum(path: Path, name: str) -> None:
    """Write the SHA-256 of `path` to `path`.sha256, in the form that `sha256sum --check` reads."""
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256(path)}  {name}\n")


def _source(run: Path) -> Path:
    recorded = run / "master" / SOURCE_FILE
    if not recorded.is_file():
        raise UserError(f"{run}: the model is not imported yet; finish the run first")
    path = Path(json.loads(recorded.read_text())["path"])
    if not path.is_file():
        raise UserError(f"{run}: its model {path} is not there any more")
    return path
