from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.segment import SegmentLines

from genius_lite.progress import Stage
from genius_lite.report import columns
from genius_lite.report.columns import Column
from genius_lite.report.state import Memory, RunState, SampleRollout, Work
from genius_lite.report.view import one_line, view

NASTY = "How\tmany \x1b[31mred\x1b[0m [bold]sheep[/bold]?\n\u202eevil\x9b1A\u200b 数 of " + "sheep " * 50
LIGHTS = dict.fromkeys(
    ("entropy", "distinct", "loops", "shorter", "longer", "ended", "unique", "value", "spread", "length_gap"), "ok"
)


def full_board() -> RunState:
    board = RunState(out="runs/" + "long-name-" * 8, model="model.gguf", rounds=12, started=10.0, updated=3700.0)
    board.enter(12, Stage.ROLLOUTS)
    board.work = Work("round 12: rollouts", "queries", 500, 123.7, 0.21, 1700)
    board.run_left, board.memory = 9000.0, Memory(int(1.5e9), int(0.5e9), int(8e9))
    board.values.add([-2 + i / 40 for i in range(75)] * 3)
    board.glimpse = SampleRollout(NASTY, [(-0.5, NASTY), (None, "b"), (-0.2, "c"), (-0.1, "fourth")])
    keys = ("score", "sampled_tokens", "tokens_per_s", "mean_value", "pairs", "loss", "margin", "type", "kept")
    row = dict(zip(keys, (0.3, 999999, 197.2, -0.6, 10, 0.69, 10.6, "Q8_0", 0.9), strict=True))
    board.rows = [{"round": 0, "score": 0.25}, *({"round": n, **row} for n in range(1, 12))]
    board.lights = {**LIGHTS, "kl": "warn", "margin": "halt"}
    board.best = 11
    return board


def console_of(width: int, encoding: str = "utf-8", **options) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding), width=width, **options)


def drawn(board: RunState, width: int, height: int = 24, **options) -> list[str]:
    console = console_of(width, height=height, **options)
    with console.capture() as said:
        console.print(SegmentLines(view(board, "the hint", console, height), new_lines=True))
    return said.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide_and_there_are_24_at_most(width):
    for board in (RunState(rounds=1), full_board()):
        lines = drawn(board, width, height=50)
        assert len(lines) <= 24
        assert len(lines) == len(view(board, "the hint", console_of(width), 50))  # none was wrapped
    text = "\n".join(lines)
    for word in ("round 12", "▸ rollouts", "123/500 queries", "margin", "the hint"):
        assert word in text


@pytest.mark.parametrize("height", [23, 16, 10, 4, 1])
def test_what_matters_least_goes_first(height):
    lines = drawn(full_board(), 80, height)
    assert len(lines) <= height
    assert any("123/500" in line for line in lines)
    if height == 16:
        assert any("fourth" in line for line in lines), "the latest step"
        assert [line.split()[0] for line in lines if "Q8_0" in line] == ["9", "10", "11*"], "and the latest rounds"
    if height >= 10:
        assert any("time" in line or "about 2h30m left" in line for line in lines)
        assert any("✗ margin" in line for line in lines)


def test_what_a_model_writes_does_nothing_to_the_terminal():
    lines = drawn(full_board(), 120, force_terminal=True, color_system=None)
    text = "\n".join(lines)
    assert "\x9b" not in text and "\u202e" not in text and "\u200b" not in text and "\t" not in text
    assert "\x1b[31m" not in text
    assert r"How\tmany \x1b[31mred\x1b[0m [bold]sheep[/bold]?↵\u202eevil\x9b1A\u200b" in text
    assert one_line(" a\r\nb ") == r"a\r↵b"
    assert one_line("数\x07", in_ascii=True) == r"\u6570\x07"


def test_an_ascii_terminal_gets_ascii():
    lines = drawn(full_board(), 80, encoding="ascii")
    text = "\n".join(lines)
    assert text.isascii()
    assert all(sign in text for sign in ("> rollouts", "+ entropy", "! kl", "X margin", "---", "~"))


def test_without_color_the_lights_still_differ(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(drawn(full_board(), 80, force_terminal=True))
    for color in range(30, 38):
        assert f"\x1b[{color}m" not in text and f";{color}m" not in text
    for sign in ("✓ entropy", "! kl", "✗ margin"):
        assert sign in text


def test_the_best_round_is_marked_and_the_latest_are_shown():
    lines = drawn(full_board(), 80)
    rows = [line.split() for line in lines if "Q8_0" in line]
    assert [row[0] for row in rows][-1] == "11*"
    assert len(rows) == 4
    assert rows[-1][1:] == ["30.0%", "999,999", "197", "-0.600", "10", "0.6900", "+10.60", "Q8_0", "90%"]


def test_columns_that_find_no_room_go_and_what_is_shown_is_whole(monkeypatch):
    (whole,) = (line for line in drawn(full_board(), 80) if "11*" in line)
    more = tuple(Column(f"new_{n}", "A new figure", lambda report: None, short=f"new{n}") for n in (1, 2))
    monkeypatch.setattr(columns, "SHORT", (*columns.SHORT[:-1], *more, columns.SHORT[-1]))
    board = full_board()
    board.rows = [{**row, "new_1": 12345.25, "new_2": 0.5} for row in board.rows]
    lines = drawn(board, 80)
    (heading,) = (line for line in lines if "tok/s" in line)
    (best,) = (line for line in lines if "11*" in line)
    assert max(map(len, lines)) <= 80
    assert heading.split() == ["round", "score", "tokens", "tok/s", "value", "pairs", "loss", "margin", "type", "…"]
    assert best.split() == whole.split()[:-1]
    (best,) = (line for line in drawn(board, 120) if "11*" in line)
    assert best.split()[-3:] == ["12,345.25", "0.50", "90%"]


def test_the_bar_is_as_long_as_what_is_done():
    board = full_board()
    bars = {width: next(line for line in drawn(board, width) if "123/500" in line) for width in (60, 80, 120)}
    assert {width: line.count("━") for width, line in bars.items()} == {60: 3, 80: 8, 120: 9}


def test_a_run_that_is_over_has_nothing_under_way():
    console = console_of(80)
    with console.capture() as said:
        console.print(SegmentLines(view(full_board(), "exported", console, 24, state="finished"), new_lines=True))
    text = said.get()
    assert "▸" not in text and "time left" not in text and "GB" not in text
    assert "✓ export" in text


def test_a_level_that_the_guard_does_not_know_is_no_fault():
    """A stranger's `progress.json` may have any; it was a traceback."""
    assert any("· kl" in line for line in drawn(RunState(rounds=1, lights={"kl": "loud"}), 80))


def test_of_a_shard_that_is_over_only_its_rollouts_are_ticked():
    board = RunState(rounds=1, number=1, kind=Stage.ROLLOUTS, shard=True)
    console = console_of(80)
    place = "".join(segment.text for segment in view(board, "", console, 24, state="finished")[1])
    assert place.split() == ["round", "1", "of", "1", "✓", "rollouts"]
    assert board.marked_stages(over=False) == [(Stage.ROLLOUTS, "now")]
