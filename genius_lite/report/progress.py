"""Progress of a run's stages: bars with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
_LINE_EVERY = 15.0  # seconds between plain lines of one stage
_FORECAST_FROM = 0.05  # share of a stage that must be done before its end is forecast


class Progressor:
    """Shows one stage after the other on `console`."""

    def __init__(self, console: Console):
        self.console = console

    def say(self, line: str) -> None:
        """Print a line of its own."""
        self.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: float, unit: str, scale: float = 1.0) -> Iterator[Advance]:
        """Show a stage of `total` steps; yields the function that counts them.

        Args:
            unit: what is counted, as it stands behind a rate: "queries", "MB".
            scale: what one step is in that unit (1e-6 for bytes shown as MB).
        """
        show = self._bar if self.console.is_terminal else self._lines
        with show(name, total * scale, unit) as advance:
            yield lambda n: advance(n * scale)

    @contextmanager
    def _bar(self, name: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=20),
            _CountColumn(unit),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total)
            yield lambda n: progress.advance(task, n)
            progress.update(task, completed=total)

    @contextmanager
    def _lines(self, name: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        start = last = time.monotonic()
        done = 0.0

        def advance(n: float) -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                rate = done / (now - start)
                # The first few of many steps often pay for loading; no forecast rests on them.
                known = total * _FORECAST_FROM <= done < total
                left = f", {_duration((total - done) / rate)} left" if known else ""
                self.say(f"{name}: {done:.0f} of {total:.0f} {unit}, {_rate(rate)}{left}")

        self.say(f"{name}: {total:.0f} {unit}")
        yield advance
        self.say(f"{name}: done in {_duration(time.monotonic() - start)}")


class _CountColumn(ProgressColumn):
    """`7/12 queries  0.21/s`: fits 80 columns beside the bar."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{task.completed:.0f}/{task.total or 0:.0f} {self.unit}  {_rate(rate)}", no_wrap=True)


def _rate(rate: float) -> str:
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2f}/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
