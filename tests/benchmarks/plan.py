"""What `genius-lite plan` says beside what a run takes: peak memory and time of each stage.

    python -m tests.benchmarks.plan recipes/quickstart.yaml

The recipe is planned, then run in a fresh temporary folder in a process of its own. Memory is the resident set of that
process and the sampler's worker together, sampled every 20 ms; of the run's own process it is also the kernel's high
water mark, which misses no peak. Pages that both map are counted twice, as the plan does. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

STAGES = ("import_base", "evaluate", "sample", "train", "next_policy", "export")
_EVERY = 0.02  # seconds


def run_marked(recipe: Path, settings: list[str], marks: Path) -> None:
    """Run a recipe in this process, and note when each stage begins and ends and the most memory it held."""
    from rich.console import Console

    from genius_lite.recipe.reader import load
    from genius_lite.report.progress import Progressor

    program = import_module("genius_lite.run")

    file = marks.open("a")

    def marked(name: str, stage: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            number = getattr(args[0], "number", None)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            began = time.time()
            try:
                return stage(*args, **kwargs)
            finally:
                row = {"stage": name, "round": number, "began": began, "ended": time.time(), "main": _high_water()}
                print(json.dumps(row), file=file, flush=True)

        return call

    for name in STAGES:
        setattr(program, name, marked(name, getattr(program, name)))
    program.run(load(recipe, settings), Progressor(Console()))


def _high_water() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


class Watch:
    """Samples the memory of a process and its children: rows of (time, own anonymous, own file, theirs, theirs)."""

    def __init__(self, pid: int):
        self.process = psutil.Process(pid)
        self.rows: list[tuple[float, int, int, int, int]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.done.wait(_EVERY):
            try:
                own = _resident(self.process.pid)
                others = [_resident(child.pid) for child in self.process.children(recursive=True)]
            except (psutil.Error, OSError, KeyError):
                continue  # it ended between two looks
            self.rows.append((time.time(), *own, sum(o[0] for o in others), sum(o[1] for o in others)))


def _resident(pid: int) -> tuple[int, int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(status[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))  # pyright: ignore[reportReturnType]


def measured(recipe: Path, settings: list[str]) -> list[dict[str, Any]]:
    """A row for each stage that ran, in order: seconds, and peak bytes of both processes together."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.jsonl"
        command = [sys.executable, "-m", "tests.benchmarks.plan", str(recipe), "--marks", str(marks)]
        for setting in [*settings, f"out={json.dumps(str(Path(folder) / 'run'))}"]:
            command += ["--set", setting]
        process = subprocess.Popen(command, stdout=sys.stderr)
        watch = Watch(process.pid)
        code = process.wait()
        watch.stop()
        if code:
            raise SystemExit(f"the run ended with exit status {code}")
        rows = [json.loads(line) for line in marks.read_text().splitlines()]
    for row in rows:
        inside = [r for r in watch.rows if row["began"] <= r[0] <= row["ended"]]
        most = max(inside, key=lambda r: sum(r[1:]), default=(0, 0, 0, 0, 0))
        row["seconds"] = row["ended"] - row["began"]
        row["peak"] = max(sum(most[1:]), row["main"])
        row["at_peak"] = dict(zip(("anon", "file", "worker_anon", "worker_file"), most[1:], strict=True))
        row["at_start"] = inside[0][1] + inside[0][2] if inside else 0
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--marks", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.marks:
        run_marked(a.recipe, a.set, a.marks)
        return
    for row in measured(a.recipe, a.set):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
