from __future__ import annotations

import errno
import io
import json
import re
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from genius_lite.errors import NoPairError, Stopped
from genius_lite.progress import Stage
from genius_lite.report import state as board_module
from genius_lite.report import terminal as progress_module
from genius_lite.report.console import waiting
from genius_lite.report.status import read_state
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.view import is_lively
from genius_lite.results.rounds import RoundReport
from tests.support.faults import refuse


def _console(**options) -> Console:
    return Console(file=io.StringIO(), width=80, height=24, **options)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _terminal() -> Console:
    return _console(force_terminal=True, _environ={"TERM": "xterm-256color"})


def test_a_pipe_gets_plain_lines(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(board_module.Meter.__init__, "__defaults__", (0.0, 0.0, lambda: now[0]))
    console = _console()
    with TerminalProgress(console).stage("round 1: rollouts", 100, "queries", done=20) as advance:
        for _ in range(4):
            now[0] += 10
            advance(10)
    assert _written(console).splitlines() == [
        "round 1: rollouts: 100 queries, 20 of them from before",
        "round 1: rollouts: 40/100 queries  1.00/s  1m00s left",
        "round 1: rollouts: 60/100 queries  1.00/s  40s left",
        "round 1: rollouts: done in 40s",
    ]


def test_a_stage_that_fails_is_not_said_to_be_done():
    console = _console()
    with pytest.raises(Stopped), TerminalProgress(console).stage("import", 5, "matrices"):
        raise Stopped
    assert _written(console) == "import: 5 matrices\n"


def test_what_a_terminal_can_show_decides():
    assert is_lively(_terminal())
    for plain in (
        _console(),
        _console(force_terminal=True, _environ={"TERM": "dumb"}),
        Console(file=io.StringIO(), force_terminal=True, width=30, height=24),
        Console(file=io.StringIO(), force_terminal=True, width=80, height=5),
    ):
        assert not is_lively(plain)
    dumb = _console(force_terminal=True, _environ={"TERM": "dumb"})
    with TerminalProgress(dumb).stage("import", 5, "matrices"):
        pass
    assert "\x1b" not in _written(dumb)


@pytest.mark.parametrize("console", [_terminal(), _console(), _console(quiet=True)])
def test_the_board_is_kept_while_a_run_goes_on_and_says_why_it_ended(tmp_path, console):
    progress, threads = TerminalProgress(console, "genius-lite run r.yaml"), threading.active_count()
    before = time.time()
    with pytest.raises(Stopped), progress.showing(tmp_path, "m.gguf", 4, 2, {}):
        progress.enter(1, Stage.TRAIN)
        with progress.stage("round 1: train (nf4)", 10, "pairs") as advance:
            advance(3)
            progress._look()
            kept = read_state(tmp_path)
        progress.say("[bold]a line[/bold] [3]")
        progress.finished(RoundReport(1, score=0.5), {"kl": "ok"}, 1)
        raise Stopped
    assert kept and kept.work and kept.memory
    assert (kept.work.done, kept.kind, kept.memory.main > 1e6) == (3, "train", True)
    assert before <= kept.started <= kept.entered <= kept.updated <= time.time(), "seconds since 1970"
    left = read_state(tmp_path)
    assert left
    assert (left.ended, left.command) == ("stopped on request", "genius-lite run r.yaml")
    assert (left.rows[0]["round"], left.rows[0]["score"], left.best, left.work) == (1, 0.5, 1, None)
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]
    assert ("[bold]a line[/bold] [3]" in _written(console)) != console.quiet
    assert threading.active_count() == threads


def test_what_is_waited_for_is_said_on_a_terminal_alone_and_goes(capsys, monkeypatch):
    with waiting("reading"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with waiting("reading\x1b[2J"):
        pass
    out, err = capsys.readouterr()
    assert (out, "reading\\x1b[2J" in err, err.endswith("\x1b[2K")) == ("", True, True)


def test_a_fault_is_named(tmp_path):
    with pytest.raises(ValueError), TerminalProgress(_console()).showing(tmp_path, "m.gguf", 4, 2, {}):
        raise ValueError("two\nlines")
    assert json.loads((tmp_path / "progress.json").read_text())["ended"] == "ValueError: two lines"


def test_of_what_the_user_can_mend_the_line_is_enough(tmp_path):
    with pytest.raises(NoPairError), TerminalProgress(_console()).showing(tmp_path, "m.gguf", 4, 2, {}):
        raise NoPairError("no pair to learn from")
    left = read_state(tmp_path)
    assert left and (left.ended, left.stuck) == ("no pair to learn from", True)


def test_a_full_disk_or_a_lost_folder_does_not_end_the_run(tmp_path):
    with TerminalProgress(_console()).showing(tmp_path / "gone", "m.gguf", 4, 2, {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_a_full_disk_cuts_short_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", refuse(errno.ENOSPC))
    with TerminalProgress(_console()).showing(tmp_path, "m.gguf", 4, 2, {}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_live_view_stands_below_what_is_said_and_leaves_nothing(tmp_path):
    console = _terminal()
    progress = TerminalProgress(console)
    with progress.showing(tmp_path, "m.gguf", 4, 2, {}):
        progress.enter(1, Stage.ROLLOUTS)
        with progress.stage("round 1: rollouts", 4, "queries") as advance:
            advance(1)
            progress._look()
            before = len(_written(console))
            progress.board.updated = 0
            progress._refresh()
            progress._refresh()
            again = _written(console)[before:]
            advance(3)
        progress.say("a line")
    screen = _screen(_written(console))
    assert [line for line in screen if line] == ["round 1: rollouts: 4 queries in 0s", "a line"]
    assert again.count("1/4 queries") <= 1  # the same picture is not drawn twice


def _screen(written: str) -> list[str]:
    """What a terminal shows in the end of lines, carriage returns, lines erased and the cursor moved up."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d+A", part):
            row -= int(part[2:-1])
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return lines


def test_a_terminal_that_shows_no_run_gets_a_bar():
    console = _terminal()
    with TerminalProgress(console).stage("merge", 4, "MB") as advance:
        advance(4)
    assert "4/4 MB" in _written(console)
