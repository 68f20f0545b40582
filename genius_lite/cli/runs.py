"""The commands about recipes and runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from genius_lite.cli.arguments import RecipeFile, Settings
from genius_lite.cli.interrupts import handle_interrupts
from genius_lite.cli.processes import main_process
from genius_lite.errors import Stop, Stopped
from genius_lite.text import visible

app = typer.Typer()

HALTED = 3
"""Exit code of a run that the collapse guard ended."""


@app.command()
def run(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Annotated[str | None, typer.Option(help="Run folder, instead of the recipe's")] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Another run's folder; what would come out the same is taken from it")
    ] = None,
    ablate_imatrix: Annotated[
        bool, typer.Option("--ablate-imatrix", help="Measure every type without the importance matrix too")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run even what memory or disk do not suffice for")] = False,
) -> None:
    """Self-train: sample, learn, merge, re-quantize, round after round. Run it again to go on.

    Several processes train together: torchrun --nproc-per-node 2 -m genius_lite run RECIPE.
    """
    from genius_lite.recipe.reader import load
    from genius_lite.report.console import terminal
    from genius_lite.report.summary import print_summary
    from genius_lite.report.terminal import TerminalProgress
    from genius_lite.run import run as run_recipe

    console, command, stop = terminal(), shlex.join(["genius-lite", *sys.argv[1:]]), Stop()
    progress = TerminalProgress(console, command)
    own = [f"out={json.dumps(out)}"] * bool(out) + ["quantize.ablate_imatrix=true"] * ablate_imatrix
    with main_process() as group:
        with handle_interrupts(stop, progress) as presses:
            try:
                summary = run_recipe(load(recipe, [*(settings or []), *own]), progress, stop, reuse, force, group)
            except (Stopped, KeyboardInterrupt):
                by = " by the launcher, whose report says why" if group.size > 1 and presses.exit_code == 143 else ""
                goes_on = f"what is finished is kept. The same command goes on: {visible(command)}"
                print(f"stopped{by}; {goes_on}", file=sys.stderr)
                raise typer.Exit(presses.exit_code) from None
        print_summary(summary, console)
        if summary.halted:
            raise typer.Exit(HALTED)


@app.command()
def validate(recipe: RecipeFile, settings: Settings = None) -> None:
    """Check a recipe, its model and its queries; writes nothing."""
    from genius_lite.pipeline.job import prepare
    from genius_lite.plan.history import cut_off
    from genius_lite.recipe.reader import load

    job = prepare(load(recipe, settings or []))
    longest = max(len(q.tokens) for q in job.queries)
    print(f"model    {visible(str(job.source.path))}")
    print(f"         {visible(job.source.architecture)}, {job.source.parameters / 1e6:.0f} M parameters")
    print(f"queries  {len(job.queries)}, the longest of {longest} tokens; {job.duplicates} repeats dropped")
    slots = "as many branches as is fastest here" if job.recipe.sampler.slots == "auto" else job.recipe.sampler.slots
    print(f"sampler  {slots} branches of {job.context} tokens")
    print(f"out      {visible(job.recipe.out)}")
    for note in (job.quantized_twice, cut_off(job)):
        if note:
            print(f"note     {visible(note)}")
    print(f"{visible(str(recipe))} is fine")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; equal recipes are pooled by seed")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Show what each run's rounds gained on their tasks, side by side."""
    import msgspec

    from genius_lite.report.compare import compare_runs, print_comparison
    from genius_lite.report.console import terminal

    rows = compare_runs(runs)
    if as_json:
        print(json.dumps(msgspec.to_builtins(rows), indent=2))
    else:
        print_comparison(rows, terminal())
