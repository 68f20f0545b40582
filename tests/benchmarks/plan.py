"""What `genius-lite plan` says beside what a run takes: peak memory and time of each stage.

    python -m tests.benchmarks.plan recipes/quickstart.yaml

The recipe is planned, with a rehearsal in a temporary folder, then run in a new one, both in processes of their own.
Memory is the resident set of the run and of the sampler's worker together, looked at ten times a second, and of the
run's own process the kernel's high-water mark, which misses no peak. Pages that both map are counted twice, as the plan
does. The machine must be quiet for the times to mean something; memory does not mind. `cpu_s` are the processor's
seconds: pinned to one core, as `taskset -c 0` does, a run takes these even beside other programs. What the base model
answered in earlier runs is asked again. Linux only. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.machine import in_words, measured_on

STAGES = {
    "import_base": "import",
    "evaluate": "evaluate",
    "evaluate_base": "evaluate",
    "sample": "rollouts",
    "train": "train",
    "next_policy": "merge",
    "export": "export",
}
"""Functions of `run.py`, and what a plan calls their stages."""
_EVERY = 0.1  # seconds: looking takes some milliseconds


def run_marked(recipe: Path, settings: list[str], marks: Path) -> None:
    """Run a recipe in this process; note when each stage begins and ends, and the most memory that it held."""
    from rich.console import Console

    from genius_lite import run as run_anything
    from genius_lite.recipe.reader import load
    from genius_lite.report.terminal import TerminalProgress

    program = sys.modules[run_anything.__module__]
    file, last = marks.open("a"), [0]

    def marked(name: str, stage: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            last[0] = getattr(args[0], "number", last[0])
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            began, worked = time.time(), sum(os.times()[:4])
            try:
                return stage(*args, **kwargs)
            finally:
                cpu = sum(os.times()[:4]) - worked  # of its workers too: they have ended
                times = {"began": began, "ended": time.time(), "cpu": cpu}
                row = {"stage": name, "round": last[0], **times, "main": _high_water()}
                print(json.dumps(row), file=file, flush=True)

        return call

    for name, shown in STAGES.items():
        setattr(program, name, marked(shown, getattr(program, name)))
    run_anything(load(recipe, settings), TerminalProgress(Console(stderr=True)))


def _high_water() -> int:
    return _status(os.getpid())["VmHWM"]


def _status(pid: int) -> dict[str, int]:
    """The sizes that the kernel tells of a process, bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


class Watch:
    """Samples the memory of a process and of its children: time, and resident bytes of the one and of the others."""

    def __init__(self, pid: int):
        self._process = psutil.Process(pid)
        self.rows: list[tuple[float, int, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_EVERY):
            try:
                own = _status(self._process.pid)["VmRSS"]
                others = [_status(child.pid)["VmRSS"] for child in self._process.children(recursive=True)]
            except (psutil.Error, OSError, KeyError):
                continue  # it ended between two looks
            self.rows.append((time.time(), own, sum(others)))


def measured(recipe: Path, settings: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each stage that ran, in order: seconds, and peak bytes of both processes together."""
    marks = folder / "marks.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks.plan", str(recipe), "--marks", str(marks), *settings]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, "TQDM_DISABLE": "1"})
    watch = Watch(process.pid)
    code = process.wait()
    watch.stop()
    if code:
        raise SystemExit(f"the run ended with exit status {code}")
    rows = [json.loads(line) for line in marks.read_text().splitlines()]
    for row in rows:
        inside = [r for r in watch.rows if row["began"] <= r[0] <= row["ended"]]
        together = max((own + others for _, own, others in inside), default=0)
        row["seconds"], row["peak"] = row["ended"] - row["began"], max(together, row["main"])
        if row["stage"] == "evaluate" and row["round"] == 0:
            row["stage"] = "base model"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:  # the base model in the types of the rounds is evaluated in the first of them
        whole = found.setdefault((row["stage"], row["round"]), {**row, "seconds": 0.0, "cpu": 0.0, "peak": 0})
        whole["seconds"], whole["cpu"] = whole["seconds"] + row["seconds"], whole["cpu"] + row["cpu"]
        whole["peak"] = max(whole["peak"], row["peak"])
    return list(found.values())


def planned(recipe: Path, settings: list[str]) -> dict[str, Any]:
    """The plan as the command gives it, and the seconds that it took."""
    command = [sys.executable, "-m", "genius_lite", "plan", str(recipe), "--json", "--temporary", *settings]
    began, worked = time.time(), sum(os.times()[2:4])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout), "took": time.time() - began, "cpu": sum(os.times()[2:4]) - worked}


def compare(plan: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both of every stage that ran, and planned over measured."""
    stages = {(stage["stage"], stage["round"]): stage for stage in plan["stages"]}
    found = []
    for row in rows:
        stage = stages[row["stage"], row["round"]]
        memory = sum(stage["peak"]["parts"].values())
        found.append(
            {
                "stage": row["stage"],
                "round": row["round"],
                "planned_mb": round(memory / 1e6),
                "measured_mb": round(row["peak"] / 1e6),
                "memory": round(memory / row["peak"], 3),
                "planned_s": round(stage["seconds"], 1),
                "measured_s": round(row["seconds"], 1),
                "cpu_s": round(row["cpu"], 1),
                "time": round(stage["seconds"] / max(row["seconds"], 0.1), 3),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--marks", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.marks:
        run_marked(a.recipe, a.set, a.marks)
        return
    print(in_words(machine := measured_on()), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = [*a.set, "evaluate.remember=false", f"out={json.dumps(str(folder / 'run'))}"]
        settings = [argument for setting in every for argument in ("--set", setting)]
        plan = planned(a.recipe, settings)
        began = time.time()
        rows = compare(plan, measured(a.recipe, settings, folder))
        wall = time.time() - began
    widths = {"stage": 14, "round": 7, **dict.fromkeys(list(rows[0])[2:], 13)}
    print("".join(f"{key:>{width}}" for key, width in widths.items()))
    for row in rows:
        print("".join(f"{row[key]!s:>{width}}" for key, width in widths.items()))
    planned_s, measured_s = (sum(row[key] for row in rows) for key in ("planned_s", "measured_s"))
    peaks = [max(row[key] for row in rows) for key in ("planned_mb", "measured_mb")]
    whole = {
        "memory": round(peaks[0] / peaks[1], 3),
        "time": round(planned_s / measured_s, 3),
        "planned_s": round(planned_s, 1),
        "measured_s": round(measured_s, 1),
        "wall_s": round(wall, 1),
        "cpu_s": round(sum(row["cpu_s"] for row in rows), 1),
        "plan_s": round(plan["took"], 1),
        "plan_cpu_s": round(plan["cpu"], 1),
        "others": round(plan["others"], 3),
    }
    print(json.dumps({"machine": machine, "recipe": a.recipe.name, "whole": whole, "stages": rows}))


if __name__ == "__main__":
    main()
