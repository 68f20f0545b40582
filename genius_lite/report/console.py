"""The terminal that everything is shown on. What models, queries and paths say is shown, and never obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from rich import box
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from genius_lite.text import prose, visible

_UNTOLD, _NARROWEST = 80, 20  # columns of a terminal that says 0; in fewer than 20, tables are nothing but dots


def terminal(*, stderr: bool = False, **options: Any) -> Console:
    """Open a console that shows text as it is, on which none can send control codes or turn its direction."""
    return _Plain(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def waiting(why: str) -> AbstractContextManager[object]:
    """Say on a terminal what is waited for while the block lasts; nothing stays of it, and a pipe has none of it."""
    return terminal(stderr=True).status(visible(why), spinner="line")  # which is in ASCII


def make_table(*headings: str, **look: Any) -> Table:
    """Make a table: of text, in columns that fold, and of figures, under headings that begin with a #, which do not."""
    table = Table(**{"box": box.SIMPLE_HEAD, **look})
    for heading in headings:
        if heading.startswith("#"):
            table.add_column(heading[1:], justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


class _Plain(Console):
    """rich's own cursor movements and styles pass: they are no text."""

    @property
    def size(self) -> ConsoleDimensions:
        """What a terminal says of itself, which may be next to nothing: then its lines are broken there."""
        width, height = super().size
        return ConsoleDimensions(max(width or _UNTOLD, _NARROWEST), height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else prose(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)
