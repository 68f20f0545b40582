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

    from genius_lite.job import prepare
    from genius_lite.plan.plan import plan as make_plan
    from genius_lite.plan.table import print_plan
    from genius_lite.recipe.reader import load
    from genius_lite.report.console import terminal
    from genius_lite.report.progress import Progressor

    job = prepare(load(recipe, settings or []))
    found = make_plan(job, Progressor(terminal(stderr=True)), rehearsal=rehearsal, temporary=temporary)
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

    from genius_lite.doctor.advice import problems
    from genius_lite.doctor.findings import look
    from genius_lite.doctor.show import lines
    from genius_lite.visible import visible

    found = look(Path(out))
    wrong = problems(found)
    if as_json:
        print(json.dumps({"findings": msgspec.to_builtins(found), "problems": msgspec.to_builtins(wrong)}, indent=2))
    else:
        for line in lines(found, wrong):
            print(visible(line))
    if any(problem.level == "stops" for problem in wrong):
        raise typer.Exit(1)
