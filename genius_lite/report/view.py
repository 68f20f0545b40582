"""The board as lines of text: what `run` shows live, and `watch` from another terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment, SegmentLines
from rich.table import Column, Table
from rich.text import Text

from genius_lite import text as texts
from genius_lite.progress import named
from genius_lite.report.columns import rounds_table
from genius_lite.report.state import Histogram, RunState, Work

State = Literal["running", "interrupted", "failed", "halted", "finished"]
Line = list[Segment]
Part = tuple[Sequence[float], RenderableType]
"""What is drawn, and how little each of its lines matters; the last figure is for all further ones too."""

MOST_LINES = 24
_LABEL = 9  # columns
_STEPS, _ROWS = 3, 4  # lines of a rollout, and of the table
_BARS, _COLUMNS = 40, 60  # characters of a bar and of the histogram, at most
_LIGHTS = {"ok": ("✓", "green"), "warn": ("!", "bold yellow"), "halt": ("✗", "bold red")}
_STAGES = {"done": ("✓", "green"), "now": ("▸", "bold cyan"), "next": ("·", "dim")}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans("✓▸·✗…▁▂▃▄▅▆▇█", "+>-X~.:-=+*#@")
_NARROWEST, _LOWEST = 40, 10  # columns and lines of a terminal on which a view is of any use


def is_lively(console: Console) -> bool:
    """Say whether a view can be redrawn on the console, and has room."""
    return console.is_interactive and console.width >= _NARROWEST and console.height >= _LOWEST


@contextmanager
def live_lines(console: Console) -> Iterator[Callable[[list[Line]], None]]:
    """Draw lines in the place of those before; the same ones are not drawn again, so that nothing flickers."""
    drawn: tuple[list[Line], int] | None = None
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(lines: list[Line]) -> None:
            nonlocal drawn
            if (lines, console.width) != drawn:
                drawn = lines, console.width
                live.update(SegmentLines(lines, new_lines=True), refresh=True)

        yield draw


def view(board: RunState, hint: str, console: Console, height: int, state: State = "running") -> list[Line]:
    """Lay the board out in lines that fit the console, no more than `height`; what matters least goes first.

    The last line is the hint, if any. Drawing takes the console's lock, which a terminal that is held up keeps.
    """
    running, over = state == "running", state in ("halted", "finished")
    in_ascii = console.options.ascii_only
    blocks: list[list[Part]] = [
        [((1,), _head(board, running, in_ascii)), ((1,), _place(board, over))],
        _now(board, running),
        _rollout(board, console.width, in_ascii),
        [] if board.shard else [((3,), _guard(board))],
        _rounds(board, console),
    ]
    parts = [part for block in blocks if block for part in (*block, ((9,), Text()))]
    parts[-1:] = [((8,), Text(hint, style="bold yellow" if board.stopping else "dim"))] if hint else []
    options, lines = console.options.update(no_wrap=True, overflow="ellipsis"), list[tuple[float, Line]]()
    for ranks, drawn in parts:
        for n, line in enumerate(console.render_lines(drawn, options, pad=False)):
            lines.append((ranks[min(n, len(ranks) - 1)], line))
    while len(lines) > min(height, MOST_LINES):
        least = max(range(len(lines)), key=lambda i: (lines[i][0], i))
        del lines[least]
    signs = _ASCII if in_ascii else {}
    return [[Segment(text.translate(signs), style) for text, style, _ in line] for _, line in lines]


def one_line(text: str, in_ascii: bool = False) -> str:
    """Write foreign text as one line in which nothing acts on a terminal; what cannot be printed is spelled out."""
    if in_ascii:
        return texts.visible(text.strip()).encode("ascii", "backslashreplace").decode()
    return texts.visible(text.strip().replace("\n", "↵"))


def at_work(board: RunState, running: bool) -> str:
    """Write for how long the run's process has been at work; "" where none is."""
    seconds = board.updated - board.started
    return texts.short_duration(seconds) if running and seconds > 0 else ""


def counted(work: Work) -> str:
    """Write `7/12 queries  0.21/s  24s left`; thirds that add up to one are one."""
    parts = [f"{math.floor(work.done + 1e-6)}/{work.total:.0f} {work.unit}"]
    if work.rate:
        parts.append(f"{work.rate:.0f}/s" if work.rate >= 10 else f"{work.rate:.2f}/s")
    parts += [f"{texts.short_duration(work.left)} left"] if work.left else []
    return "  ".join(parts)


def _head(board: RunState, running: bool, in_ascii: bool) -> Text:
    since = at_work(board, running)
    names = "  ".join(one_line(name, in_ascii) for name in (board.model, board.out))
    return Text.assemble(("genius-lite", "bold"), f"  {since}" if since else "", f"  {names}")


def _place(board: RunState, over: bool) -> Text:
    of = f" of {board.rounds}" if board.number else ""
    text = Text.assemble((f"{named(board.number)}{of}   ", "bold"))
    for stage, how in board.marked_stages(over):
        sign, style = _STAGES[how]
        text.append(f"{sign} {stage}  ", style)
    return text


def _now(board: RunState, running: bool) -> list[Part]:
    """Show what is counted, and of a run that goes on the time left and the memory held."""
    parts: list[Part] = [((0,), _work(board))] if running or board.work else []
    if running:
        parts += [((2,), _row("run", run_left(board))), ((3,), _row("memory", memory_line(board)))]
    return parts


def _work(board: RunState) -> Table:
    if not (work := board.work):
        return _row(board.kind, texts.short_duration(max(0.0, board.updated - board.entered)) if board.entered else "")
    bar = ProgressBar(work.total, work.done, width=_BARS, style="dim", complete_style="cyan", finished_style="cyan")
    shown = Table.grid(Column(), Column(no_wrap=True), padding=(0, 1))  # the bar gives way
    shown.add_row(bar, counted(work))
    return _row(Text(work.name.partition(": ")[2] or work.name, style="not dim bold"), shown)


def run_left(board: RunState) -> str:
    if board.run_left is not None:
        return f"about {texts.short_duration(board.run_left)} left"
    return "known once a round was measured, or genius-lite plan was run undisturbed"


def memory_line(board: RunState) -> str:
    if not (m := board.memory):
        return ""
    workers = f" + {m.workers / 1e9:.2f} GB in workers" if m.workers else ""
    return f"{m.main / 1e9:.2f} GB{workers}, {(m.main + m.workers) / m.machine:.0%} of {m.machine / 1e9:.1f} GB"


def _rollout(board: RunState, width: int, in_ascii: bool) -> list[Part]:
    """Show the histogram of this round's values, and the last rollout."""
    parts: list[Part] = []
    if values := board.values.count:
        lowest, highest, _ = board.values.columns(1)
        low, high, mean = (f"{value:.2f}" for value in (lowest, highest, board.values.mean))
        after = f" mean {mean} nats/token of {values}"
        room = width - _LABEL - len(low) - len(high) - len(after) - 4  # a blank between each two
        blocks = _blocks(board.values, max(1, min(room, _COLUMNS, round(3 * values**0.5))))
        parts.append(((4,), _row("values", low, blocks, high, Text(after, style="dim", no_wrap=True))))
    if board.glimpse:
        parts.append(((5,), _row("question", one_line(board.glimpse.prompt, in_ascii))))
        steps = len(board.glimpse.steps)
        for number, (value, text) in list(enumerate(board.glimpse.steps, 1))[-_STEPS:]:
            shown = Text("" if value is None else f"{value:.2f}", style="dim", justify="right")
            row = _row(f" step {number}", shown, one_line(text, in_ascii))
            row.columns[1].min_width = 7
            parts.append(((6 + (steps - number) / 10,), row))
    return parts


def _blocks(values: Histogram, width: int) -> Text:
    """Draw a histogram as a line of blocks; a part with any value in it shows at least the lowest block."""
    _, _, counts = values.columns(width)
    return Text("".join(_BLOCKS[-(-n * (len(_BLOCKS) - 1) // max(counts))] for n in counts), style="cyan")


def _guard(board: RunState) -> Table:
    if not board.lights:
        return _row("guard", Text("judges each round when it is evaluated", style="dim", no_wrap=True))
    lights = []
    for name, level in board.lights.items():
        sign, style = _LIGHTS.get(level, ("·", "dim"))  # of a stranger's folder, any text
        lights.append(Text(f"{sign} {name.replace('_', ' ')}", style=style))
    return _row("guard", Columns(lights, padding=(0, 2)))


def _rounds(board: RunState, console: Console) -> list[Part]:
    """Show the latest rounds; of them the oldest goes first."""
    rows = board.rows[-_ROWS:]
    table = rounds_table(rows, board.best, console, box=None, padding=(0, 0, 0, 2), header_style="dim")
    ages = range(len(rows) - 1, 0, -1)
    return [((4, *(6 + age / 10 for age in ages), 5), table)] if rows else []


def _row(label: str | Text, *cells: RenderableType) -> Table:
    """Show a label, and what stands beside it; where that finds no room, the widest of it is cut."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=_LABEL, style="dim", no_wrap=True)
    for _ in cells:
        grid.add_column()
    grid.add_row(label, *(Text(cell, no_wrap=True) if isinstance(cell, str) else cell for cell in cells))
    return grid
