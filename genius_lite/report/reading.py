"""What a run folder says while another process may be writing it: a file that is not whole yet says nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from genius_lite.report.board import Board

PROGRESS_FILE = "progress.json"


def read_json(path: Path) -> Any:
    """The document; None where it is missing, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_board(run: Path) -> Board | None:
    """The board as the run's process left it; None where there is none."""
    try:
        return msgspec.json.decode((run / PROGRESS_FILE).read_bytes(), type=Board)
    except (OSError, msgspec.DecodeError):
        return None


def round_folders(run: Path) -> list[tuple[int, Path]]:
    """The rounds that have begun, in order; round 0 is the base model."""
    found = [(path.name.removeprefix("round-"), path) for path in run.glob("round-*")]
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file that grows, without one that is not whole."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []


def stage_seconds(run: Path) -> dict[str, float]:
    """What each stage of a round took, of the latest round in which it is done; stages that no round has are left out.

    The base model's evaluation stands in for a round's.
    """
    found: dict[str, float] = {}
    for _, here in round_folders(run):
        timings: dict[str, float] = defaultdict(float)
        for line in complete_lines(here / "timings.jsonl"):
            row = json.loads(line)
            timings[row["stage"]] += row["seconds"]
        training = read_json(here / "adapter" / "train.json")
        if (here / "pairs.jsonl").exists() and "rollouts" in timings:
            found |= {"rollouts": timings["rollouts"], "pairs": 0.0}
        if training:
            found["train"] = training["seconds"]
        if (here / "policy.gguf").exists() and "quantize" in timings:
            found["merge"] = timings["quantize"]
        if (here / "evaluation").exists() and "evaluation" in timings:
            found["evaluate"] = timings["evaluation"]
    return found
