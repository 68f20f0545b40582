"""The commands that look at a run, from any terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder: of a run that goes on, or has ended")]


@app.command()
def status(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines")] = False,
) -> None:
    """Say where a run stands: its state, stage, rates, time left, guard, best round and exported model."""
    import json

    from genius_lite.report.console import terminal
    from genius_lite.report.status import look, print_status

    found = look(run)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_status(found, terminal())


@app.command()
def watch(run: RunFolder) -> None:
    """Show a run live until it ends. Ctrl-C ends the view, and leaves the run alone."""
    from genius_lite.report.console import terminal
    from genius_lite.report.status import print_status
    from genius_lite.report.status import watch as watch_run

    console = terminal()
    try:
        found = watch_run(run, console)
    except KeyboardInterrupt:
        return
    print_status(found, console)
