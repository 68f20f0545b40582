"""The commands about a recipe before it is run, and about this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from genius_lite.cli.arguments import AsJson, RecipeFile, Settings, path, progress, read_job, require_new_file, show
from genius_lite.errors import UserError
from genius_lite.text import visible

app = typer.Typer()


@app.command()
def reference(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema that editors use instead")] = False,
    recipes: Annotated[Path | None, typer.Option(parser=path, help="A folder of recipes that is listed too")] = None,
) -> None:
    """Print every key of a recipe: its type, default and unit, and what it does."""
    from genius_lite.recipe import reference as written

    if recipes and not recipes.is_dir():
        raise UserError(f"{recipes}: no such folder of recipes")
    print(written.schema_text() if schema else written.reference(recipes), end="")


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="OUT.yaml", parser=path, help="The recipe to write")] = Path(
        "mine.yaml"
    ),
    model: Annotated[str | None, typer.Option(help="A GGUF: a path, hf: or python:")] = None,
    queries: Annotated[str | None, typer.Option("--queries", "--questions", help="A file of questions, or hf:")] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the questions")] = None,
    amount: Annotated[str | None, typer.Option(help="A time, as 2h or 45m, or a number of questions")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Problems with answers: a file, a benchmark (gsm8k), reasoning_gym:NAME or none")
    ] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Type of the result, or source: as the model")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is suggested for the rest")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe if it exists")] = False,
) -> None:
    """Ask five questions, and write a commented recipe that fits this machine."""
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: a recipe's name ends in .yaml")
    require_new_file(out, None if force else "give --force")

    from genius_lite.init.questions import this_machine
    from genius_lite.init.recipe import Given, recipe_text
    from genius_lite.recipe.reader import parse
    from genius_lite.rundir.folder import write_text

    given = Given(model, queries, column, amount, tasks, kind, yes)
    try:
        text = recipe_text(given, this_machine(), out)
    except KeyboardInterrupt:
        print("\nnothing is written", file=sys.stderr)
        raise typer.Exit(130) from None
    parse(text, str(out))
    write_text(out, text)
    print(visible(f"{out} is written. Check it: genius-lite validate {shlex.quote(str(out))}"))


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
    from genius_lite.plan.plan import plan as make_plan
    from genius_lite.plan.table import print_plan

    job = read_job(recipe, settings)
    show(make_plan(job, progress(), rehearsal=rehearsal, temporary=temporary), as_json, print_plan)


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(parser=path, help="The folder that runs are written to")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show what this machine has for a run, and what is wrong, with the command that mends it."""
    from genius_lite.doctor.examine import examine, report
    from genius_lite.report.console import waiting

    with waiting("looking at this machine"):
        found = list(examine(out))
    show(found, as_json, lambda found, _: print(*map(visible, report(found)), sep="\n"))
    if any(finding.problem and finding.problem.level == "stops" for finding in found):
        raise typer.Exit(1)
