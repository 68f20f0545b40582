"""The commands for several machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genius_lite.cli.arguments import RecipeFile, Settings, path, progress
from genius_lite.cli.interrupts import handle_interrupts
from genius_lite.errors import UserError
from genius_lite.text import amount, visible

app = typer.Typer()
cluster = typer.Typer(help="Look at a Ray cluster.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")


@app.command()
def sample(
    recipe: RecipeFile,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which of how many parts of the queries, from 1")],
    settings: Settings = None,
    number: Annotated[int, typer.Option("--round", min=1, help="The round to sample")] = 1,
    model: Annotated[
        Path | None, typer.Option(parser=path, help="Of a later round: the policy.gguf that the run made for it")
    ] = None,
) -> None:
    """Sample a part of a round's rollouts, to carry to the machine that learns. Run it again to go on."""
    from genius_lite.pipeline.shards import Shard, sample_shard
    from genius_lite.recipe.reader import load

    if model and not model.is_file():
        raise UserError(f"--model {model}: no such file; name the run's policy.gguf")
    shown = progress(stderr=False)
    with handle_interrupts(shown) as stop:
        out, count = sample_shard(load(recipe, settings or []), Shard.parse(shard), number, model, shown, stop)
    print(f"{amount(count, 'rollouts')} in {visible(str(out))}; genius-lite merge-shards takes them into a run")


@app.command("merge-shards")
def merge_shards(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", parser=path, help="Folders that `sample` made")],
    out: Annotated[Path, typer.Option(parser=path, help="The run folder, new or not")],
) -> None:
    """Take the rollouts of shards into a run, which samples only what is missing."""
    from genius_lite.pipeline.shards import merge_shards as merge

    over = merge(out, shards, lambda line: print(visible(line)))
    run = visible(str(out))
    print(f"{run} has {amount(over, 'queries')}; genius-lite run RECIPE --out {run} goes on with them")


@cluster.command()
def status(
    address: Annotated[str, typer.Option(help="As sampler.cluster: auto, ray://HOST:PORT or HOST:PORT")] = "auto",
) -> None:
    """Show the nodes of a Ray cluster, and whether each can take part."""
    from genius_lite.cluster.nodes import node_statuses, print_status
    from genius_lite.report.console import terminal

    print_status(node_statuses(address), terminal())
