"""Ctrl-C and SIGTERM on real runs, on a terminal of their own, and what other terminals see of them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genius_lite.records import Rollout
from genius_lite.rundir.lines import read_records
from tests.support import cli, forked, warm
from tests.support.stopped import stop

RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 1
foresight: {beams: 2, candidates: 2, steps: 2, max_tokens: 200, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-3, batch_pairs: 1, epochs: 12, parity_limit: 5, precision: fp32}
evaluate: {queries: 8}
sampler: {slots: 4, threads: 1}
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
QUERIES, SEARCHED = 24, 22  # a tenth is held out


OWN_TERMINAL = """
import fcntl, signal, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there becomes a signal to this process
"""


class Terminal:
    """A command on a pseudo-terminal, and all that it has written there."""

    def __init__(self, *arguments: str, cwd: Path):
        self.fd, slave = pty.openpty()
        asked = forked.Asked("genius_lite", [*arguments], str(cwd), ENVIRONMENT, OWN_TERMINAL)
        self.process = forked.ask(warm.server(), asked, [slave] * 3)
        os.close(slave)
        self.written = ""

    def wait_for(self, there: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, self.written[-3000:]
            assert self.read() or there(), self.written[-3000:]

    def read(self) -> bool:
        """What comes within a moment; False once the other side has closed."""
        if select.select([self.fd], [], [], 0.02)[0]:
            try:
                self.written += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:  # how Linux says that nobody is there any more
                return False
        return True

    def press(self, key: str) -> None:
        os.write(self.fd, key.encode())

    def end(self) -> int:
        """The exit code."""
        while self.read():
            pass
        os.close(self.fd)
        with self.process:
            return self.process.wait(60)


def genius(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return cli.genius(*arguments, cwd=cwd, env=ENVIRONMENT)


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("".join(f"question {n}\n" for n in range(QUERIES)))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def _trained(run: Path) -> float:
    """Pairs that the training under way has behind it; an earlier process' last words do not count."""
    file = run / "progress.json"
    kept = json.loads(file.read_text()) if file.exists() else {"work": None}
    return kept["work"]["done"] if kept["work"] and kept["kind"] == "train" and not kept["ended"] else 0.0


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_stopped_again_and_again_a_run_loses_nothing(project):
    run, rollouts = project / "run", project / "run/round-1/rollouts.jsonl"
    command = ("run", "r.yaml", "--out", "run")

    # Once, while queries are searched: those under way are finished, the others are not begun.
    terminal = Terminal(*command, cwd=project)
    terminal.wait_for(lambda: _lines(rollouts) >= 3)
    terminal.press("\x03")
    terminal.wait_for(lambda: "stopping: the queries under way are finished" in terminal.written)
    assert terminal.end() == 130
    assert "The same command goes on: genius-lite run r.yaml --out run" in _plain(terminal.written)
    searched, kept = read_records(rollouts, Rollout), rollouts.read_bytes()
    assert 3 <= len(searched) < SEARCHED
    looked_at = genius("status", "run", cwd=project)
    assert looked_at.stdout.startswith("interrupted: stopped on request; the same command goes on from here: genius-l")
    assert f"{len(searched)}/{SEARCHED} queries" in looked_at.stdout

    # Once, while it trains: the update under way is kept. Others look on, and their Ctrl-C is their own.
    terminal = Terminal(*command, cwd=project)
    terminal.wait_for(lambda: _trained(run) > 50)
    stop(terminal.process.pid)  # so that it is not over before all have looked
    seen = json.loads(genius("status", "run", "--json", cwd=project).stdout)
    assert (seen["state"], seen["kind"], seen["pid"]) == ("running", "train", terminal.process.pid)
    onlooker = Terminal("watch", "run", cwd=project)
    onlooker.wait_for(lambda: "▸ train" in onlooker.written and "Ctrl-C ends this view" in onlooker.written)
    onlooker.press("\x03")
    assert onlooker.end() == 0
    os.kill(terminal.process.pid, signal.SIGCONT)  # it is still there
    terminal.press("\x03")
    assert terminal.end() == 130
    (state,) = (run / "round-1/training").glob("update-*")
    curve = json.loads((state / "progress.json").read_text())["curve"]
    assert len(curve) == int(state.name.removeprefix("update-")) > 0
    assert rollouts.read_bytes().startswith(kept)

    # Twice: at once.
    terminal = Terminal(*command, cwd=project)
    terminal.wait_for(lambda: _trained(run) > 50)
    terminal.press("\x03")
    terminal.press("\x03")
    assert terminal.end() == 130
    assert not (run / "round-1/adapter").exists()

    result = genius(*command, cwd=project)
    assert result.returncode == 0, result.stderr
    assert len({rollout.query.id for rollout in read_records(rollouts, Rollout)}) == _lines(rollouts) == SEARCHED
    assert json.loads(genius("status", "run", "--json", cwd=project).stdout)["state"] == "finished"
    trained = json.loads((run / "round-1/adapter/train.json").read_text())
    assert (trained["curve"][: len(curve)], len(trained["curve"])) == (curve, trained["updates"])


def _plain(written: str) -> str:
    """Without what moves the cursor and colors, in one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).split())


BUSY = """
import hashlib
import typer
from rich.console import Console
from genius_lite.cli import interrupts
from genius_lite.report.terminal import TerminalProgress
from genius_lite.progress import Stage

interrupts._PATIENCE = 0.5
progress = TerminalProgress(Console())
progress.enter(1, Stage.MERGE)
try:
    with interrupts.handle_interrupts(progress):
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes within a library, where no Python handler runs
except typer.Exit as e:
    raise SystemExit(e.exit_code)
"""


def _busy(preexec_fn: Callable[[], object] = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)) -> subprocess.Popen:
    """A process in a library; that it may be hung up is said again, as these tests may run under nohup."""
    command, pipe = [sys.executable, "-c", BUSY], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=preexec_fn)
    assert process.stdout and process.stdout.readline() == "busy\n"
    return process


def test_the_first_press_is_answered_and_the_second_obeyed_while_a_library_keeps_the_main_thread():
    with _busy() as process:
        assert process.stderr
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline()
        assert said == "stopping: this stage is finished; press Ctrl-C again to stop at once\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_where_interrupts_are_ignored_they_stay_so():
    with _busy(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr and "stopping" not in process.stderr.read()


def test_a_terminal_that_goes_ends_a_run_as_sigterm_does_and_nohup_keeps_it():
    with _busy() as process:
        assert process.stderr
        process.stderr.close()  # what is said then reaches nobody
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    with _busy(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def test_a_run_whose_terminal_goes_says_where_it_stands_and_goes_on(project):
    command = ("run", "r.yaml", "--out", "run", "--set", "learner.epochs=1")
    terminal = Terminal(*command, cwd=project)
    terminal.wait_for(lambda: _lines(project / "run/round-1/rollouts.jsonl") >= 3)
    os.close(terminal.fd)  # as when a window is closed, or ssh lost
    with terminal.process:
        assert terminal.process.wait(60) == 129
    assert genius("status", "run", cwd=project).stdout.startswith("interrupted: stopped on request")
    result = genius(*command, cwd=project)
    assert result.returncode == 0, result.stderr
