"""The board as lines of text: what `run` shows live, and `watch` from another terminal."""

from __future__ import annotations

import math
import time
import unicodedata
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from genius_lite.report.columns import SHORT
from genius_lite.report.state import RunState, Work

State = Literal["running", "interrupted", "halted", "finished"]
MOST_LINES = 24
_LABEL = 10  # columns
_STEPS, _ROWS = 3, 4  # lines of a rollout, and of the table
_BARS, _COLUMNS = 40, 60  # characters of a bar and of the histogram, at most
_LIGHT_STYLES = {"ok": "green", "warn": "bold yellow", "halt": "bold red"}


@dataclass(frozen=True)
class Signs:
    """What is drawn with. `blocks` go from nothing to full."""

    done: str = "✓"
    now: str = "▸"
    later: str = "·"
    warn: str = "!"
    halt: str = "✗"
    bar: str = "━"
    rest: str = "─"
    blocks: str = " ▁▂▃▄▅▆▇█"
    ellipsis: str = "…"
    line_break: str = "↵"
    ascii: bool = False


UNICODE = Signs()
ASCII = Signs("+", ">", "-", "!", "X", "=", "-", " .:-=+*#@", "...", "\\n", ascii=True)


def view(
    board: RunState, hint: str, width: int, height: int, signs: Signs = UNICODE, state: State = "running"
) -> list[Text]:
    """The board in lines of at most `width` columns, no more than fit `height` lines; what matters least goes first.

    Args:
        hint: the last line.
    """
    running, over = state == "running", state in ("halted", "finished")
    parts = [
        [(1, _head(board, running, signs)), (1, _place(board, signs, over))],
        _now(board, width, signs, running),
        _rollout(board, width, signs),
        [(3, line) for line in _guard(board, width, signs)],
        _table(board),
    ]
    lines = [line for part in parts if part for line in (*part, (9, Text()))]
    lines[-1:] = [(8, Text(hint, style="bold yellow" if board.stopping else "dim"))]
    while len(lines) > min(height, MOST_LINES):
        least = max(range(len(lines)), key=lambda i: (lines[i][0], i))
        del lines[least]
    return [_cut(line, width, signs) for _, line in lines]


def signs_of(console: Console) -> Signs:
    """What the console's encoding can show."""
    return ASCII if console.options.ascii_only else UNICODE


def visible(text: str, signs: Signs = UNICODE) -> str:
    """Text as one line in which nothing acts on a terminal: what is no printable character is spelled out."""
    shown = []
    for character in text.strip():
        if character == "\n":
            shown.append(signs.line_break)
        elif unicodedata.category(character) == "Zs":
            shown.append(" ")
        elif character.isprintable() and (character.isascii() or not signs.ascii):
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return "".join(shown)


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


def _head(board: RunState, running: bool, signs: Signs) -> Text:
    since = duration(board.updated - board.started) if running and board.updated > board.started else ""
    names = "  ".join(visible(name, signs) for name in (board.model, board.out))
    return Text.assemble(("genius-lite", "bold"), f"  {since}" if since else "", f"  {names}")


def _place(board: RunState, signs: Signs, over: bool) -> Text:
    where = f"round {board.number} of {board.rounds}" if board.number else "base model"
    text = Text(f"{where}   ", style="bold")
    stages = board.stages
    at = len(stages) if over else stages.index(board.kind) if board.kind in stages else 0
    for i, kind in enumerate(stages):
        sign, style = (signs.done, "green") if i < at else (signs.now, "bold cyan") if i == at else (signs.later, "dim")
        text.append(f"{sign} {kind}  ", style)
    return text


def _now(board: RunState, width: int, signs: Signs, running: bool) -> list[tuple[int, Text]]:
    """What is counted, and of a run that goes on the time left and the memory held."""
    lines = [(0, _work(board, width, signs))] if running or board.work else []
    if running:
        lines += [(2, _labelled("run", _run_left(board))), (3, _labelled("memory", _memory(board)))]
    return lines


def _work(board: RunState, width: int, signs: Signs) -> Text:
    if not board.work:
        return _labelled(board.kind, duration(max(0.0, time.time() - board.entered)) if board.entered else "")
    name = board.work.name.partition(": ")[2] or board.work.name
    label, after = f"{name:<{_LABEL - 1}} ", f"  {counted(board.work)}"
    room = min(_BARS, width - len(label) - len(after))
    text = Text(label, style="bold")
    if room >= 8:
        filled = round(room * min(1.0, board.work.done / board.work.total)) if board.work.total else room
        text.append(signs.bar * filled, "cyan")
        text.append(signs.rest * (room - filled), "dim")
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


def _rollout(board: RunState, width: int, signs: Signs) -> list[tuple[int, Text]]:
    """The histogram of this round's values, and the last rollout."""
    lines = []
    if board.values.count:
        after = f"  of {board.values.count}, mean {board.values.mean:.2f} nats/token"
        after *= width >= _LABEL + len(after) + 30
        room = max(1, min(_COLUMNS, width - _LABEL - len(after) - 18, round(3 * board.values.count**0.5)))
        low, high, counts = board.values.columns(room)
        most, blocks = max(counts), signs.blocks
        # A part with any value in it shows at least the lowest block.
        bars = "".join(blocks[-(-n * (len(blocks) - 1) // most)] for n in counts)
        drawn = Text.assemble(f"{low:.2f} ", (bars, "cyan"), f" {high:.2f}", (after, "dim"))
        lines.append((4, _labelled("values", drawn)))
    if board.glimpse:
        lines.append((5, _labelled("question", visible(board.glimpse.prompt, signs))))
        first = max(0, len(board.glimpse.steps) - _STEPS)
        for number, (value, text) in enumerate(board.glimpse.steps[first:], first + 1):
            shown = "" if value is None else f"{value:.2f}"
            step = Text.assemble((f"{shown:>7}  ", "dim"), visible(text, signs))
            lines.append((6, _labelled(f" step {number}", step)))
    return lines


def _guard(board: RunState, width: int, signs: Signs) -> list[Text]:
    if not board.lights:
        return [_labelled("guard", Text("judges each round when it is evaluated", style="dim"))]
    marks = {"ok": signs.done, "warn": signs.warn, "halt": signs.halt}
    lines = [_labelled("guard", "")]
    for name, level in board.lights.items():
        light = f"{marks[level]} {name.replace('_', ' ')}  "
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


def _cut(line: Text, width: int, signs: Signs) -> Text:
    line.no_wrap = True
    line.rstrip()
    if line.cell_len > width:
        line.truncate(width - len(signs.ellipsis))
        line.append(signs.ellipsis)
    return line
