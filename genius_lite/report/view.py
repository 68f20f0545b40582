"""The board as lines of text: what `run` shows live, and `watch` from another terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from genius_lite import text as texts
from genius_lite.report.columns import SHORT
from genius_lite.report.state import RunState, Work

State = Literal["running", "interrupted", "halted", "finished"]
MOST_LINES = 24
_LABEL = 10  # columns
_STEPS, _ROWS = 3, 4  # lines of a rollout, and of the table
_BARS, _COLUMNS = 40, 60  # characters of a bar and of the histogram, at most
_LIGHT_STYLES = {"ok": "green", "warn": "bold yellow", "halt": "bold red"}


_BLOCKS = " ▁▂▃▄▅▆▇█"
_MARKS = {"ok": "✓", "warn": "!", "halt": "✗"}
_ASCII = str.maketrans("✓▸·✗━─…▁▂▃▄▅▆▇█", "+>-X=-~.:-=+*#@")
_NARROWEST, _LOWEST = 40, 10  # columns and lines of a terminal on which a view is of any use


def is_lively(console: Console) -> bool:
    """Whether a view can be redrawn on the console, and has room."""
    redrawn = console.is_terminal and not console.is_dumb_terminal
    return redrawn and console.width >= _NARROWEST and console.height >= _LOWEST


@contextmanager
def live_lines(console: Console) -> Iterator[Callable[[list[Text]], None]]:
    """Draw lines in the place of those before; those that have not changed are left alone, so that none flickers."""
    drawn: tuple[list[Text], int] | None = None
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(lines: list[Text]) -> None:
            nonlocal drawn
            if (lines, console.width) != drawn:
                drawn = lines, console.width
                live.update(Group(*lines), refresh=True)

        yield draw


def view(board: RunState, hint: str, console: Console, height: int, state: State = "running") -> list[Text]:
    """The board in lines that fit the console's width, no more than `height`; what matters least goes first.

    Args:
        hint: the last line.
    """
    running, over = state == "running", state in ("halted", "finished")
    width, in_ascii = console.width, console.options.ascii_only
    parts = [
        [(1, _head(board, running, in_ascii)), (1, _place(board, over))],
        _now(board, width, running),
        _rollout(board, width, in_ascii),
        [(3, line) for line in _guard(board, width)],
        _table(board),
    ]
    lines = [line for part in parts if part for line in (*part, (9, Text()))]
    lines[-1:] = [(8, Text(hint, style="bold yellow" if board.stopping else "dim"))]
    while len(lines) > min(height, MOST_LINES):
        least = max(range(len(lines)), key=lambda i: (lines[i][0], i))
        del lines[least]
    shown = [line for _, line in lines]
    for line in shown:
        line.no_wrap = True
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        if in_ascii:
            line.plain = line.plain.translate(_ASCII)
    return shown


def one_line(text: str, in_ascii: bool = False) -> str:
    """Foreign text as one line in which nothing acts on a terminal; what is no printable character is spelled out."""
    if in_ascii:
        return texts.visible(text.strip()).encode("ascii", "backslashreplace").decode()
    return texts.visible(text.strip().replace("\n", "↵"))


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def rate_of(rate: float) -> str:
    """`12/s`, `0.21/s`."""
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2f}/s"


def whole(done: float) -> int:
    """What is done wholly; thirds that add up to one are one."""
    return math.floor(done + 1e-6)


def counted(work: Work) -> str:
    """`7/12 queries  0.21/s  24s left`."""
    parts = [f"{whole(work.done)}/{work.total:.0f} {work.unit}"]
    parts += [rate_of(work.rate)] if work.rate else []
    parts += [f"{duration(work.left)} left"] if work.left else []
    return "  ".join(parts)


def _head(board: RunState, running: bool, in_ascii: bool) -> Text:
    since = duration(board.updated - board.started) if running and board.updated > board.started else ""
    names = "  ".join(one_line(name, in_ascii) for name in (board.model, board.out))
    return Text.assemble(("genius-lite", "bold"), f"  {since}" if since else "", f"  {names}")


def _place(board: RunState, over: bool) -> Text:
    where = f"round {board.number} of {board.rounds}" if board.number else "base model"
    text = Text(f"{where}   ", style="bold")
    stages = board.stages
    at = len(stages) if over else stages.index(board.kind) if board.kind in stages else 0
    for i, kind in enumerate(stages):
        sign, style = ("✓", "green") if i < at else ("▸", "bold cyan") if i == at else ("·", "dim")
        text.append(f"{sign} {kind}  ", style)
    return text


def _now(board: RunState, width: int, running: bool) -> list[tuple[int, Text]]:
    """What is counted, and of a run that goes on the time left and the memory held."""
    lines = [(0, _work(board, width))] if running or board.work else []
    if running:
        lines += [(2, _labelled("run", _run_left(board))), (3, _labelled("memory", _memory(board)))]
    return lines


def _work(board: RunState, width: int) -> Text:
    if not board.work:
        return _labelled(board.kind, duration(max(0.0, time.time() - board.entered)) if board.entered else "")
    name = board.work.name.partition(": ")[2] or board.work.name
    label, after = f"{name:<{_LABEL - 1}} ", f"  {counted(board.work)}"
    room = min(_BARS, width - len(label) - len(after))
    text = Text(label, style="bold")
    if room >= 8:
        filled = round(room * min(1.0, board.work.done / board.work.total)) if board.work.total else room
        text.append("━" * filled, "cyan")
        text.append("─" * (room - filled), "dim")
    else:
        after = after.strip()
    return text.append(after, "not bold")


def _run_left(board: RunState) -> str:
    if board.run_left is not None:
        return f"about {duration(board.run_left)} left"
    return "known once a round was measured, or genius-lite plan was run"


def _memory(board: RunState) -> str:
    if not (m := board.memory):
        return ""
    workers = f" + {m.workers / 1e9:.2f} GB in workers" if m.workers else ""
    return f"{m.main / 1e9:.2f} GB{workers}, {(m.main + m.workers) / m.machine:.0%} of {m.machine / 1e9:.1f} GB"


def _rollout(board: RunState, width: int, in_ascii: bool) -> list[tuple[int, Text]]:
    """The histogram of this round's values, and the last rollout."""
    lines = []
    if board.values.count:
        after = f"  of {board.values.count}, mean {board.values.mean:.2f} nats/token"
        after *= width >= _LABEL + len(after) + 30
        room = max(1, min(_COLUMNS, width - _LABEL - len(after) - 18, round(3 * board.values.count**0.5)))
        low, high, counts = board.values.columns(room)
        most = max(counts)
        # A part with any value in it shows at least the lowest block.
        bars = "".join(_BLOCKS[-(-n * (len(_BLOCKS) - 1) // most)] for n in counts)
        drawn = Text.assemble(f"{low:.2f} ", (bars, "cyan"), f" {high:.2f}", (after, "dim"))
        lines.append((4, _labelled("values", drawn)))
    if board.glimpse:
        lines.append((5, _labelled("question", one_line(board.glimpse.prompt, in_ascii))))
        first = max(0, len(board.glimpse.steps) - _STEPS)
        for number, (value, text) in enumerate(board.glimpse.steps[first:], first + 1):
            shown = "" if value is None else f"{value:.2f}"
            step = Text.assemble((f"{shown:>7}  ", "dim"), one_line(text, in_ascii))
            lines.append((6, _labelled(f" step {number}", step)))
    return lines


def _guard(board: RunState, width: int) -> list[Text]:
    if not board.lights:
        return [_labelled("guard", Text("judges each round when it is evaluated", style="dim"))]
    lines = [_labelled("guard", "")]
    for name, level in board.lights.items():
        light = f"{_MARKS[level]} {name.replace('_', ' ')}  "
        if lines[-1].cell_len + len(light) > width + 2 and lines[-1].cell_len > _LABEL:
            lines.append(_labelled("", ""))
        lines[-1].append(light, _LIGHT_STYLES[level])
    return lines


def _table(board: RunState) -> list[tuple[int, Text]]:
    """The latest rounds, as columns that are as wide as what stands in them."""
    rows = board.rows[-_ROWS:]
    if not rows:
        return []
    cells = [["round", *(column.short for column in SHORT)]]
    for row in rows:
        best = "*" if row["round"] == board.best else ""
        cells.append([f"{row['round']}{best}", *(column.plain(row.get(column.key)) for column in SHORT)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    found = [(4, Text(f"  {lines[0]}", style="dim"))]
    for age, (row, line) in enumerate(zip(reversed(rows), reversed(lines[1:]), strict=True)):
        style = "bold" if row["round"] == board.best else ""
        found.insert(1, (5 + (age > 0), Text(f"  {line}", style=style)))
    return found


def _labelled(label: str, text: str | Text) -> Text:
    return Text.assemble((f"{label:<{_LABEL - 1}} ", "dim"), text)
