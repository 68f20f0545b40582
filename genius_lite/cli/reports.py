"""The commands about reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genius_lite.errors import UserError
from genius_lite.text import visible

app = typer.Typer()


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not")],
    to: Annotated[Path | None, typer.Option(help="Folder to write to, instead of the run's own")] = None,
    queries: Annotated[int | None, typer.Option(help="Show the rollout trees of so many queries, if they fit")] = None,
) -> None:
    """Write a run's report: report.html, which is complete in itself, and report.md."""
    from genius_lite.report.trees import QUERIES
    from genius_lite.report.write import write_report

    try:
        written = write_report(run, to or run, QUERIES if queries is None else queries)
    except OSError as e:
        raise UserError(
            f"{e.filename or to or run} cannot be written: {e.strerror}; name another folder with --to"
        ) from None
    print(*(visible(str(path)) for path in written), sep="\n")
