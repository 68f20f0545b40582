"""Runs of a project's `r.yaml` that tell which stage they are in."""

from __future__ import annotations

import math
import os
import queue
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.support import forked, warm

COMMAND = ["run", "r.yaml", "--out", "run"]
START = "start"
HANGS = "error: it does not end\n"
_PATIENCE = 240.0  # seconds for one run, on a busy machine
_TELLING = """
from genius_lite.report.terminal import TerminalProgress
enter = TerminalProgress.enter
def told(self, number, stage):
    print(f"STAGE {number} {stage}", flush=True)
    enter(self, number, stage)
TerminalProgress.enter = told
"""


class Process:
    """A run that tells which stage it is in; a fork of a process with the libraries, which takes no time to start."""

    def __init__(self, project: Path, before: str = ""):
        self.stage, self.said, self.code = START, list[str](), math.nan
        self.told: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        asked = forked.Asked("genius_lite", COMMAND, str(project), {**os.environ}, f"{before}\n{_TELLING}")
        ours, theirs = os.pipe()
        with Path(os.devnull).open() as nothing:
            self._command = forked.ask(warm.server(), asked, [nothing.fileno(), theirs, theirs])
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._patience = threading.Timer(_PATIENCE, self._give_up)
        self._reader.start()
        self._patience.start()

    @property
    def pid(self) -> int:
        return self._command.pid

    def _read(self, said: int) -> None:
        with os.fdopen(said) as lines:
            for line in lines:
                if line.startswith("STAGE "):
                    self.stage = line.removeprefix("STAGE ").strip()
                    self.told.put((self.stage, time.monotonic()))
                else:
                    self.said.append(line)
        with self._command:
            self.code = self._command.wait()
        self._patience.cancel()
        self.told.put(("", time.monotonic()))

    def _give_up(self) -> None:
        self.said.append(HANGS)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def reach(self, wanted: str, stages: list[str]) -> str:
        """Wait for a stage, or for one behind it where it was over before; which that is, empty if the run ends."""
        stage = START
        while stage and stages.index(stage) < stages.index(wanted):
            stage = self.told.get()[0]
        return stage

    def end(self) -> int:
        self._reader.join()
        return int(self.code)


def stage_seconds(project: Path) -> dict[str, float]:
    """Measure how long each stage takes, the least of three runs that are let alone."""
    found = dict[str, float]()
    for _ in range(3):
        shutil.rmtree(project / "run", ignore_errors=True)
        last, process = (START, time.monotonic()), Process(project)
        assert process.end() == 0, process.said
        while not process.told.empty():
            stage, at = process.told.get()
            found[last[0]] = round(min(at - last[1], found.get(last[0], math.inf)), 3)
            last = (stage, at)
    return found
