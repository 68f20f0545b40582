"""The commands about this machine: what a run would take on it, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from genius_lite.cli.arguments import RecipeFile, Settings

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")]


@app.command()
def plan(
    recipe: RecipeFile,
    settings: Settings = None,
    as_json: AsJson = False,
    rehearsal: Annotated[
        bool, typer.Option(help="Run a small round in the run's folder for the time; takes one to three minutes")
    ] = True,
    temporary: Annotated[
        bool, typer.Option("--temporary", help="Rehearse in a temporary folder; a run then imports the model anew")
    ] = False,
) -> None:
    """Show what a run would take, before it does: memory, disk, tokens and time of each stage, and whether it fits."""
    import msgspec

    from genius_lite.pipeline.job import prepare
    from genius_lite.plan.plan import plan as make_plan
    from genius_lite.plan.table import print_plan
    from genius_lite.recipe.reader import load
    from genius_lite.report.console import terminal
    from genius_lite.report.terminal import TerminalProgress

    job = prepare(load(recipe, settings or []))
    found = make_plan(job, TerminalProgress(terminal(stderr=True)), rehearsal=rehearsal, temporary=temporary)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        print_plan(found, terminal())


@app.command()
def doctor(
    out: Annotated[str, typer.Option(help="The folder that runs are written to")] = "runs",
    as_json: AsJson = False,
) -> None:
    """Show what this machine has for a run, and what is wrong, with the command that mends it."""
    from pathlib import Path

    import msgspec

    from genius_lite.doctor import examine, report
    from genius_lite.text import visible

    found = list(examine(Path(out)))
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        for line in report(found):
            print(visible(line))
    if any(finding.problem and finding.problem.level == "stops" for finding in found):
        raise typer.Exit(1)
