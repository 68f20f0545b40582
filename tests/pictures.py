"""The README's pictures, of a real run: `python -m tests.pictures RUN [--to docs/pictures]`.

Of a run that goes on, the live view is drawn when its last round's search is half done, and after its end the first
screen of its report; of a finished one only that. Nothing of this machine is in them: no path, no name of a user.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from io import StringIO
from pathlib import Path

import msgspec
from rich.console import Console
from rich.segment import SegmentLines
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme

from genius_lite.progress import Stage
from genius_lite.report.gather import gather
from genius_lite.report.page import page
from genius_lite.report.status import Status, look
from genius_lite.report.terminal import RUNNING
from genius_lite.report.view import MOST_LINES, view
from tests.support import browser

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS = 100  # of the terminal
SCREEN = {"width": 960, "height": 600}  # of the browser, in CSS pixels
SHARPER = 1.25  # pixels to a CSS pixel
LIGHT = TerminalTheme(
    (251, 250, 248),
    (29, 35, 41),
    [
        (29, 35, 41),
        (179, 38, 30),
        (28, 116, 65),
        (138, 90, 0),
        (31, 95, 168),
        (122, 91, 168),
        (20, 110, 120),
        (87, 96, 106),
    ],
)
"""The report's own colours on paper; rich has none that can be read there."""
THEMES = {"light": LIGHT, "dark": SVG_EXPORT_THEME}


def live_view(status: Status, theme: str) -> str:
    """Draw where a run stands, as its terminal shows it, as SVG that asks no network for a font."""
    board = msgspec.structs.replace(status.board, out=f"runs/{Path(status.board.out).name}")
    console = Console(file=StringIO(), record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
    lines = view(board, RUNNING, console, MOST_LINES, status.state)
    console.print(SegmentLines(lines, new_lines=True))
    svg = console.export_svg(title="genius-lite run", theme=THEMES[theme], unique_id=f"live-{theme}")
    svg = svg.replace("rgba(255,255,255,0.35)", "#8888")  # the window's edge, on paper too
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


def first_screen(run: Path, to: Path) -> None:
    """Write the first screen of a run's report as PNG, light and dark.

    Raises:
        SystemExit: there is no browser here.
    """
    if not (path := browser.chromium()):
        sys.exit("no Chromium or Chrome on this machine; apt-get install chromium")
    html = page(gather(run))
    with browser.launched(path) as opened:
        for theme in THEMES:
            context = opened.new_context(viewport=SCREEN, device_scale_factor=SHARPER, color_scheme=theme)
            shown = context.new_page()
            shown.set_content(html)
            shown.screenshot(path=to / f"report-{theme}.png")
            context.close()


def main(arguments: list[str] | None = None) -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, default=PICTURES)
    asked = parser.parse_args(arguments)
    asked.to.mkdir(parents=True, exist_ok=True)
    drawn = False
    while (status := look(asked.run)).state == "running":
        board = status.board
        searching = board.number == board.rounds and board.kind == Stage.ROLLOUTS and board.work and board.glimpse
        if searching and not drawn and board.work.done >= board.work.total / 2:
            for theme in THEMES:
                (asked.to / f"live-{theme}.svg").write_text(live_view(status, theme), encoding="utf-8")
            drawn = True
        time.sleep(1.0)
    if status.state != "finished":
        sys.exit(f"{asked.run} is {status.state}; the report's picture is of a finished run")
    first_screen(asked.run, asked.to)


if __name__ == "__main__":
    main()
