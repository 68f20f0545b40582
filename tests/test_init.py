"""`genius-lite init` as a user types it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genius_lite.recipe.reader import load
from tests.support.cli import genius

COMMAND = [sys.executable, "-c", "from genius_lite.cli import main; main()", "init"]


@pytest.fixture
def folder(tmp_path, tiny_llama) -> Path:
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "questions.txt").write_text("one\ntwo\nthree\n")
    return tmp_path


def _init(*arguments, cwd: Path, answers: str = "") -> subprocess.CompletedProcess[str]:
    return genius("init", *arguments, cwd=cwd, given=answers)


def test_answers_in_a_pipe_and_nothing_is_overwritten(folder):
    result = _init(cwd=folder, answers="tiny.gguf\nquestions.txt\nnone\n2\nQ8_0\n")
    assert result.returncode == 0, result.stderr
    recipe = load(folder / "mine.yaml")
    assert (recipe.queries.limit, recipe.quantize.type) == (2, "Q8_0")
    written = (folder / "mine.yaml").read_text()
    for arguments, told in (
        ((), "mine.yaml exists; name another file, or give --force"),
        (("mine.txt",), "mine.txt: a recipe's name ends in .yaml"),
        (("nowhere/x.yaml",), "nowhere: no such folder; make it first"),
        (("other.yaml",), "the input ended before `Model` was answered"),
    ):
        refused = _init(*arguments, cwd=folder)
        assert refused.returncode == 2
        assert told in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert (folder / "mine.yaml").read_text() == written
    forced = ("--force", "--yes", "--model", "tiny.gguf", "--queries", "questions.txt", "--amount", "1")
    assert _init(*forced, cwd=folder).returncode == 0
    assert load(folder / "mine.yaml").queries.limit == 1
    assert not (folder / "other.yaml").exists()


def test_ctrl_c_leaves_nothing(folder):
    master, slave = pty.openpty()
    before = sorted(folder.iterdir())
    process = subprocess.Popen(COMMAND, cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        _read_until(b"[1]", master)
        # Python does not see a signal that arrives just before it waits for a line: press until it is seen.
        _read_until(b"nothing is written", master, lambda: process.send_signal(signal.SIGINT))
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert sorted(folder.iterdir()) == before


def _read_until(wanted: bytes, terminal: int, press: Callable[[], None] = lambda: None) -> None:
    shown, deadline = b"", time.monotonic() + 60
    while wanted not in shown:
        assert time.monotonic() < deadline, shown
        press()
        if select.select([terminal], [], [], 3.0)[0]:  # long enough to answer a press before the next one
            shown += os.read(terminal, 4096)
