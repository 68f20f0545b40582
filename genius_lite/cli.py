"""The commands. Nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from genius_lite import __version__
from genius_lite.errors import UserError

if TYPE_CHECKING:
    from genius_lite.recipe import QuantType

app = typer.Typer(
    help="Self-train a quantized GGUF model on unlabelled questions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml")]
Round = Annotated[int | None, typer.Option("--round", help="0 is the base model; the last round if not given")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"genius-lite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit"),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeFile,
    out: Annotated[str | None, typer.Option(help="Run folder, instead of the recipe's")] = None,
    ablate_imatrix: Annotated[
        bool, typer.Option("--ablate-imatrix", help="Measure every type without the importance matrix too")
    ] = False,
) -> None:
    """Self-train: sample, learn, merge, re-quantize, round after round. Run it again to go on."""
    from rich.console import Console

    from genius_lite.recipe_reader import load
    from genius_lite.report.progress import Progressor
    from genius_lite.report.summary import print_summary
    from genius_lite.run import run as run_recipe

    console = Console()
    loaded = load(recipe)
    changed: dict[str, Any] = {"out": out} if out else {}
    if ablate_imatrix:
        changed["quantize"] = loaded.quantize.model_copy(update={"ablate_imatrix": True})
    try:
        summary = run_recipe(loaded.model_copy(update=changed), Progressor(console))
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    print_summary(summary, console)


@app.command()
def validate(recipe: RecipeFile) -> None:
    """Check a recipe, its model and its queries; writes nothing."""
    from genius_lite.recipe_reader import load
    from genius_lite.run import prepare

    job = prepare(load(recipe))
    longest = max(len(q.tokens) for q in job.queries)
    print(f"model    {job.source.path}")
    print(f"         {job.source.architecture}, {job.source.parameters / 1e6:.0f} M parameters")
    print(f"queries  {len(job.queries)}, the longest of {longest} tokens; {job.duplicates} repeats dropped")
    slots = "as many branches as is fastest here" if job.recipe.sampler.slots == "auto" else job.recipe.sampler.slots
    print(f"sampler  {slots} branches of {job.context} tokens")
    print(f"out      {job.recipe.out}")
    print(f"{recipe} is fine")


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A GGUF: a path, hf: or python:")],
    quants: Annotated[str, typer.Option(help="Types to measure too, such as Q4_0,Q8_0")] = "",
) -> None:
    """Measure how fast this machine decodes a model, and print the best settings as recipe lines."""
    from genius_lite.bench import HEADING, SLOTS, recipe_lines, row, sweep, sweep_types
    from genius_lite.hardware import cores
    from genius_lite.recipe import Model
    from genius_lite.sampler.messages import EngineSettings
    from genius_lite.weights import gguf_file
    from genius_lite.weights.source import locate

    kinds = _quant_types(quants)
    path = locate(Model(gguf=model))
    gguf_file.read(path)
    print(HEADING)
    speeds = []
    base = EngineSettings(slots=1, context=256, threads=cores())
    for speed in sweep(path, base, SLOTS, [False, True], {cores(), max(1, cores() // 2)}):
        print(row("as it is", speed), flush=True)
        speeds.append(speed)
    best, best_kind = max(speeds, key=lambda speed: speed.tokens_per_s), None
    for kind, speed in sweep_types(path, kinds, best.settings):
        print(row(kind, speed), flush=True)
        if speed.tokens_per_s > best.tokens_per_s:
            best, best_kind = speed, kind
    print(recipe_lines(best, best_kind))


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder")],
    to: Annotated[Path, typer.Option(help="Folder to write")],
    to_format: Annotated[str, typer.Option("--format", help="gguf, ollama, lora-gguf, peft or safetensors")] = "gguf",
    kinds: Annotated[str, typer.Option("--type", help="Quantization types, such as Q4_K_M,Q8_0; else the run's")] = "",
    number: Round = None,
) -> None:
    """Write a round's model to a folder, with a model card and checksums."""
    from rich.console import Console

    from genius_lite.export.bundle import Format, export, export_bytes
    from genius_lite.export.card import commands
    from genius_lite.report.progress import Progressor

    if to_format not in get_args(Format):
        raise UserError(f"{to_format}: no format of that name; known are {', '.join(get_args(Format))}")
    wanted, known = _quant_types(kinds), cast("Format", to_format)
    with Progressor(Console()).stage("export", export_bytes(run, number, known, wanted), "MB", 1e-6) as advance:
        export(run, number, known, wanted, to, advance)
    print(*sorted(f"{to}/{p.name}" for p in to.iterdir()), sep="\n")
    print(*commands(sorted(p.name for p in to.iterdir()), str(to)), sep="\n")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A GGUF: a path, hf: or python:")],
    other: Annotated[str | None, typer.Argument(help="Another one, to see what differs")] = None,
    template: Annotated[bool, typer.Option("--template", help="Show the chat template in full")] = False,
    with_sha256: Annotated[bool, typer.Option("--sha256", help="Compute the checksum too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")] = False,
) -> None:
    """Show what is in a GGUF: architecture, sizes by type and group, template; or how two files differ."""
    import json

    from rich.console import Console

    from genius_lite.recipe import Model
    from genius_lite.report.inspect import compare, describe, print_description, print_difference
    from genius_lite.report.progress import Progressor
    from genius_lite.weights.source import locate

    path, console = locate(Model(gguf=model)), Console()
    if other is None:
        found = describe(path, with_sha256)
    else:
        second = locate(Model(gguf=other))
        progress = Progressor(Console(stderr=True))  # what is printed stays clean
        with progress.stage("compare", describe(path)["bytes"], "MB", 1e-6) as advance:
            found = compare(path, second, advance)
    if as_json:
        print(json.dumps(found, indent=2))
    elif other is None:
        print_description(found, console, template)
    else:
        print_difference(found, console, template)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run folder, or a GGUF: a path, hf: or python:")],
    number: Round = None,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    context: Annotated[int, typer.Option(help="Tokens that the conversation may take")] = 4096,
    seed: int = 0,
) -> None:
    """Talk to a run's model, or to any GGUF."""
    from genius_lite.chat import chat as chat_with
    from genius_lite.export.bundle import RunRound
    from genius_lite.recipe import Model
    from genius_lite.weights import gguf_file
    from genius_lite.weights.source import locate

    lora = None
    if Path(model).is_dir():
        chosen = RunRound.of(Path(model), number)
        path, lora = chosen.gguf or chosen.base.gguf.path, chosen.lora
    else:
        path = locate(Model(gguf=model))
    gguf_file.read(path)
    chat_with(path, lora, system=system, temperature=temperature, max_tokens=max_tokens, context=context, seed=seed)


def _quant_types(names: str) -> list[QuantType]:
    from genius_lite.recipe import QuantType

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in get_args(QuantType)]:
        raise UserError(f"{unknown[0]}: no quantization type of that name; known are {', '.join(get_args(QuantType))}")
    return cast("list[QuantType]", wanted)


def main() -> None:
    """Entry point: a mistake in what was given is one line and exit code 2; faults keep their traceback."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would break into ours
    # Deprecations inside transformers and peft are for their authors, not for whoever runs this.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    try:
        app()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
