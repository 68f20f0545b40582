"""Broken GGUFs by the thousand through everything that opens a model: `python -m tests.faults.hostile --count 2000`.

With `--folders` it is run folders, adapters in them, and shards, through every command that takes one.

No process of the program may end, wait for ever or take much memory; a file is refused in one clear line, or works.
Ends with one line of JSON; what went wrong is printed before, with the seed that makes the file again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from tests.faults.mutate import Mutant, mutant
from tests.faults.raw import Raw
from tests.faults.run_folders import BrokenFolder, broken_folder, sound_run
from tests.faults.sound import bases
from tests.support import forked, warm

_ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds for one file, on a busy machine
_READY = 600.0  # seconds until the libraries are loaded


class Child:
    """A process that takes broken files, or folders (`module`); replaced when one ends it."""

    def __init__(self, folder: Path, sound: Path, module: str = "tests.faults.child"):
        self._command = forked.command(warm.server(), module, str(folder), str(sound))
        self._log = folder / "child.log"
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def examine(self, asked: Path | str) -> dict:
        """What became of a file, or of what is asked: `outcome` is refused, accepted, unclear or crash."""
        process = self._process or self._start()
        assert process.stdin
        process.stdin.write(f"{asked}\n")
        process.stdin.flush()
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            self.close()
            return {"outcome": "crash", "stage": "", "reason": f"no answer within {PATIENCE:.0f} s"}
        if line:
            return json.loads(line)
        status = process.wait()
        self._process = None
        words = self._log.read_text(errors="replace")[-2000:]
        return {"outcome": "crash", "stage": "", "reason": f"the process ended with {status}: {words}"}

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # What the child starts finds the tests there, and llama.cpp starts no debugger when it aborts.
                env={**os.environ, "PYTHONPATH": str(_ROOT), "GGML_NO_BACKTRACE": "1"},
            )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        if self._lines.get(timeout=_READY) != "ready\n":
            raise RuntimeError(f"the child does not start: {self._log.read_text()}")
        return self._process


def _read(stream: Iterable[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def examined(mutants: Iterable[Mutant], sound: dict[str, list[Raw]], folder: Path) -> Iterator[tuple[Mutant, dict]]:
    """Each broken model, and what became of it."""
    unbroken = folder / "sound.gguf"
    unbroken.write_bytes(sound["llama"][0].encode())
    child = Child(folder, unbroken)
    try:
        for broken in mutants:
            files = folder / "broken"
            yield broken, child.examine(broken.write(files))
            shutil.rmtree(files)
    finally:
        child.close()


def examined_folders(seeds: Iterable[int], folder: Path) -> Iterator[tuple[BrokenFolder, dict]]:
    """Each broken run folder or shard, and what became of it."""
    project, work = folder / "project", folder / "work"
    project.mkdir()
    work.mkdir()
    sound_run(project)
    child = Child(work, project, "tests.faults.folder_child")
    try:
        for seed in seeds:
            (place := folder / "broken").mkdir()
            broken = broken_folder(seed, project, place / "run")
            yield broken, child.examine(json.dumps({"path": str(broken.path), "deed": broken.deed}))
            shutil.rmtree(place)
            for made in work.glob("out-*"):
                shutil.rmtree(made)
    finally:
        child.close()


def main() -> None:
    """Try them, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--folders", action="store_true", help="run folders and shards instead of GGUFs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every file's outcome")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no other file after so long")
    parser.add_argument("--counts", type=Path, help="a file that has the counts in the end, and is gone on from")
    a = parser.parse_args()
    before = json.loads(a.counts.read_text()) if a.counts and a.counts.exists() else {}
    left, first = a.count - before.get("tried", 0), a.seed + before.get("tried", 0)
    summary = added(many_files(left, first, verbose=a.verbose, folders=a.folders, minutes=a.minutes), before)
    print(json.dumps(summary))
    if a.counts:
        a.counts.write_text(json.dumps(summary) + "\n")
    raise SystemExit(1 if summary["crashes"] or summary["unclear"] else 0)


def many_files(
    count: int, seed: int, *, verbose: bool = False, folders: bool = False, minutes: float = math.inf
) -> dict[str, Any]:
    """What became of so many files, or run folders; those that went wrong are printed."""
    start, outcomes, largest, seeds = time.monotonic(), Counter(), 0, range(seed, seed + count)
    kinds = Counter[str]()
    in_time = takewhile(lambda seed: time.monotonic() - start < minutes * 60, seeds)
    with tempfile.TemporaryDirectory() as name:
        sound = {} if folders else bases(Path(name))
        of_files = examined((mutant(n, sound) for n in in_time), sound, Path(name))
        for broken, found in examined_folders(in_time, Path(name)) if folders else of_files:
            outcomes[found["outcome"]] += 1
            kinds[_kind(broken)] += 1
            largest = max(largest, found.get("megabytes", 0))
            if not outcomes.total() % 200:
                print(dict(outcomes), flush=True)
            if verbose or found["outcome"] in ("crash", "unclear"):
                line = f"{broken.seed} [{broken.what}] {found['outcome']} {found['stage']}: {found['reason']}"
                print(line, found.get("seconds"), "s", found.get("megabytes"), "MB", flush=True)
    return {
        "tried": outcomes.total(),
        "refused": outcomes["refused"],
        "accepted": outcomes["accepted"],
        "crashes": outcomes["crash"],
        "unclear": outcomes["unclear"],
        "kinds": kinds,
        "megabytes": largest,
        "seconds": round(time.monotonic() - start),
    }


def added(found: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Both together; of memory the most."""
    if not others:
        return found
    together = {name: value + others[name] for name, value in found.items() if name != "kinds"}
    most = max(found["megabytes"], others["megabytes"])
    return {**together, "kinds": Counter(found["kinds"]) + Counter(others["kinds"]), "megabytes": most}


def _kind(broken: Mutant | BrokenFolder) -> str:
    if isinstance(broken, Mutant):
        return "GGUF"
    kind, _, what = broken.what.partition(": ")
    return "adapter" if "adapter" in what.rpartition(", ")[2] else kind


if __name__ == "__main__":
    main()
