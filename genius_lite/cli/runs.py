"""The commands that run a recipe, those that look at runs, and those for several machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from genius_lite.cli.arguments import AsJson, RecipeFile, Settings, command_line, path, progress, read_job, show
from genius_lite.cli.interrupts import handle_interrupts, main_process
from genius_lite.errors import UserError
from genius_lite.text import amount, visible

app = typer.Typer()
cluster = typer.Typer(help="Look at a Ray cluster.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", parser=path, help="A run folder: of a run that goes on, or has ended")
]

HALTED = 3
"""Exit code of a run that the collapse guard ended."""


@app.command()
def run(
    recipe: RecipeFile,
    settings: Settings = None,
    out: Annotated[str | None, typer.Option(help="Run folder, instead of the recipe's")] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(parser=path, help="Another run's folder; what would come out the same is taken from it"),
    ] = None,
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

    console = terminal()
    progress = TerminalProgress(console, command_line())
    own = [f"out={json.dumps(out)}"] if out else []
    with main_process() as group:
        with handle_interrupts(progress, launched=group.size > 1) as stop:
            summary = run_recipe(load(recipe, [*(settings or []), *own]), progress, stop, reuse, force, group)
        print_summary(summary, console)
        if summary.halted:
            raise typer.Exit(HALTED)


_USES = {"choose": "choose between rounds", "report": "report", "both": "choose between rounds and report"}


@app.command()
def validate(
    recipe: RecipeFile,
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse sources with rows that cannot be used")] = False,
) -> None:
    """Check a recipe, its model and its queries; writes nothing."""
    from genius_lite.data.files import Fault
    from genius_lite.data.vocabulary import Vocabulary
    from genius_lite.plan.history import cut_off, holds_another

    job = read_job(recipe, settings)
    if strict and (faults := [line for line in job.notes if isinstance(line, Fault)]):
        raise UserError(f"{faults[0]}; mend it, or validate without --strict")
    print(f"model    {visible(str(job.source.path))}")
    print(f"         {visible(job.source.architecture)}, {job.source.parameters / 1e6:.0f} M parameters")
    longest, repeats = amount(max(len(q.tokens) for q in job.queries), "tokens"), amount(job.duplicates, "repeats")
    watched = f"; watched, and never learned from: {len(job.watched)}" if job.watched else ""
    print(f"queries  {len(job.queries)}, the longest of {longest}; {repeats} dropped{watched}")
    for item, cfg in zip(job.tasks, job.recipe.evaluate.tasks, strict=True):
        uses = ", ".join(f"{item.uses.count(use)} {does}" for use, does in _USES.items() if use in item.uses)
        print(f"task     {visible(item.task.name)}: {amount(len(item.questions), 'problems')}, {cfg.check}; {uses}")
    with Vocabulary.open(job.source.path) as vocabulary:
        reads = vocabulary.template_reads
    if reads:
        given = f"; given {json.dumps(job.template, ensure_ascii=False)}" if job.template else ""
        print(f"template reads {visible(', '.join(reads))} (queries.template){visible(given)}")
    slots = job.recipe.sampler.slots
    branches = "as many branches as are fastest here," if slots == "auto" else f"{slots} branches"
    print(f"sampler  {branches} of {job.context} tokens")
    print(f"out      {visible(job.recipe.out)}")
    notes = [*job.notes, job.quantized_twice, cut_off(job)]
    if holds_another(Path(job.recipe.out), job.identity):
        notes.append(f"{job.recipe.out} holds a run of another recipe: run asks for another out, or --reuse")
    for note in filter(None, notes):
        print(f"note     {visible(note)}")
    print(f"{visible(str(recipe))} is fine")


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", parser=path, help="Run folders; equal recipes are pooled by seed")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what each run's rounds gained on their tasks, side by side."""
    from genius_lite.report.compare import compare_runs, print_comparison

    show(compare_runs(runs), as_json, print_comparison)


@app.command()
def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Say where a run stands: its state, stage, rates, time left, guard, best round and exported model."""
    from genius_lite.report.status import look, print_status

    found = look(run)
    show(found.as_dict() if as_json else found, as_json, print_status)


@app.command()
def watch(
    run: RunFolder,
    web: Annotated[
        bool, typer.Option("--web", help="As a page for a browser on this machine; RUN may be a folder of runs, too")
    ] = False,
    port: Annotated[int | None, typer.Option(help="With --web: a port of this machine, instead of a free one")] = None,
) -> None:
    """Show a run live until it ends. Ctrl-C ends the view, and leaves the run alone."""
    from genius_lite.report.console import terminal
    from genius_lite.report.status import print_status
    from genius_lite.report.status import watch as watch_run

    if port is not None and not web:
        raise UserError("--port is for --web; give both, or neither")
    console = terminal()
    try:
        if web:
            from genius_lite.report.web import serve

            serve(run, port or 0, lambda address: print(address, flush=True))
            return
        found = watch_run(run, console)
    except KeyboardInterrupt:
        return
    print_status(found, console)


@app.command()
def report(
    run: RunFolder,
    to: Annotated[Path | None, typer.Option(parser=path, help="Folder to write to, instead of the run's own")] = None,
) -> None:
    """Write a run's report: report.html, which is complete in itself, and report.md."""
    from genius_lite.report.page import write_report
    from genius_lite.rundir.reader import RunFolder as RunFolderOnDisk

    written = write_report(run, to or run)
    print(*(visible(str(path)) for path in written), sep="\n")
    if damaged := RunFolderOnDisk(run).damaged:
        print(f"note: damaged, and passed over: {visible(', '.join(damaged))}", file=sys.stderr)


@app.command()
def sample(
    recipe: RecipeFile,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which of how many parts of the queries, from 1")],
    settings: Settings = None,
    number: Annotated[int, typer.Option("--round", min=1, help="The round to sample")] = 1,
    model: Annotated[
        Path | None, typer.Option(parser=path, help="Of a later round: the policy.gguf that the run samples it from")
    ] = None,
) -> None:
    """Sample a part of a round's rollouts, to carry to the machine that learns. Run it again to go on."""
    from genius_lite.pipeline.shards import sample_shard
    from genius_lite.recipe.reader import load

    if model and not model.is_file():
        raise UserError(f"--model {model}: no such file; name the run's policy.gguf")
    shown = progress(stderr=False)
    with handle_interrupts(shown) as stop:
        out, count = sample_shard(load(recipe, settings or []), shard, number, model, shown, stop)
    print(f"{amount(count, 'rollouts')} in {visible(str(out))}; genius-lite merge-shards takes them into a run")


@app.command("merge-shards")
def merge_shards(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD", parser=path, help="Folders that `sample` made")],
    out: Annotated[Path, typer.Option(parser=path, help="The run folder, new or not")],
) -> None:
    """Take the rollouts of shards into a run, which samples only what is missing."""
    from genius_lite.pipeline.shards import merge_shards as merge

    over = merge(out, shards, lambda line: print(visible(line)))
    run = visible(str(out))
    print(f"{run} has {amount(over, 'queries')}; genius-lite run RECIPE --out {run} goes on with them")


@cluster.command("status")
def cluster_status(
    address: Annotated[str, typer.Option(help="As sampler.cluster: auto, ray://HOST:PORT or HOST:PORT")] = "auto",
) -> None:
    """Show the nodes of a Ray cluster, and whether each can take part."""
    from genius_lite.cluster.nodes import node_statuses
    from genius_lite.report.console import make_table, terminal

    table = make_table("node", "#CPUs", "#GPUs", "#memory", "state")
    for node in node_statuses(address):
        row = (node.name, str(node.cpus), str(node.gpus), f"{node.memory / 1e9:.0f} GB", node.state)
        table.add_row(*map(visible, row))
    terminal().print(table)
