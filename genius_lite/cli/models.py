"""The commands about models."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from genius_lite import __version__
from genius_lite.cli.arguments import (
    AsJson,
    ModelFile,
    ModelOrRun,
    Round,
    Seed,
    locate_model,
    named_model,
    path,
    problems_that_chose,
    progress,
    prompt_configs,
    quant_types,
    refuse_round,
    require_new_file,
    show,
    source,
)
from genius_lite.errors import UserError
from genius_lite.export import FormatName
from genius_lite.text import prose, visible

app = typer.Typer()


@app.command()
def bench(
    model: ModelFile,
    quants: Annotated[str, typer.Option(help="Types to measure too, such as Q4_0,Q8_0")] = "",
) -> None:
    """Measure how fast this machine decodes a model, and print the best settings as recipe lines."""
    from genius_lite.hardware.gpus import gpus
    from genius_lite.hardware.system import cores
    from genius_lite.machine.bench import HEADING, recipe_lines, row, sweep, sweep_types
    from genius_lite.machine.engine_settings import settings_to_measure
    from genius_lite.weights.untrusted import load_untrusted

    kinds = quant_types(quants)
    source = load_untrusted(locate_model(model), quantizer=bool(kinds))
    path = source.path
    print(HEADING)
    speeds = []
    base, slots = settings_to_measure(source)
    threads, draws = {cores(), max(1, cores() // 2)}, ["host", "device"] if gpus() else ["host"]
    for speed in sweep(path, base, slots, [False, True], threads, draws):
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
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=path, help="A run folder")],
    to: Annotated[Path | None, typer.Option(parser=path, help="Folder to write")] = None,
    to_format: Annotated[FormatName, typer.Option("--format", help="How the model is written")] = "gguf",
    kinds: Annotated[str, typer.Option("--type", help="Quantization types, such as Q4_K_M,Q8_0; else the run's")] = "",
    number: Round = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="hf:OWNER/REPO", help="Upload it to a repository of the hub, which is made if need be"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Show what --push uploads to everybody, not to you alone")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what --push would upload, and upload nothing")
    ] = False,
    create: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --format ollama: call `ollama create` for it, under this name"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Try it even where the disk does not suffice")] = False,
) -> None:
    """Write a round's model to a folder, with a model card and checksums; to the hub or into Ollama, too."""
    from genius_lite.cli.giving import Giving
    from genius_lite.export.bundle import FORMATS, RunRound, export, usage_of

    wanted, shown = quant_types(kinds), progress(stderr=False)
    giving = Giving(to, push, public, dry_run, create)
    giving.check(to_format, len(wanted))
    with giving.folder() as out:
        notes = export(run, number, to_format, wanted, out, shown, force=force, named=create)
        names = sorted(p.name for p in out.iterdir())
        for line in (*(f"{to}/{name}" for name in names if to), *notes):
            print(visible(line))
        chosen = RunRound.of(run, number)
        if number is None and chosen.number == 0:
            print(f"note: {chosen.why_base}; nothing that was learned is in it", file=sys.stderr)
        if to and FORMATS[to_format].usage:
            print(prose(usage_of(chosen, to_format, names, str(to), create)))
        giving.give(out, run, f"{to_format} of round {chosen.number}, by genius-lite {__version__}", shown)


@app.command()
def inspect(
    model: ModelFile,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", parser=source, help="Another one, to see what differs")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Show the chat template in full")] = False,
    with_sha256: Annotated[bool, typer.Option("--sha256", help="Compute the checksum too")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a GGUF: architecture, sizes by type and group, template; or how two files differ."""
    from genius_lite.report.inspect import compare, describe, print_description, print_difference

    path = locate_model(model)
    if other is None:
        found = describe(path, with_sha256)
    else:
        second = locate_model(other)
        size, _ = (describe(file)["bytes"] for file in (path, second))  # what is refused is refused before the bar
        with progress().stage("compare", size, "MB", 1e-6) as advance:
            found = compare(path, second, advance)
    printed = print_difference if other else print_description
    show(found, as_json, lambda found, console: printed(found, console, template))


@app.command("eval")
def evaluate(
    model: ModelOrRun,
    tasks: Annotated[
        list[str],
        typer.Option(
            parser=source,
            help="FILE.jsonl:CHECK, a benchmark (gsm8k), reasoning_gym:NAME, or a recipe that names some; repeatable",
        ),
    ],
    against: Annotated[
        str | None, typer.Option(parser=source, help="Another model; of a run, its base model if not given")
    ] = None,
    number: Round = None,
    samples: Annotated[int, typer.Option(min=0, help="Responses to each problem at the temperature")] = 4,
    temperature: Annotated[
        float | None, typer.Option(help="If not given, as the recipe or run has it, or the model's file, or 0.7")
    ] = None,
    greedy: Annotated[bool, typer.Option(help="Also the likeliest response")] = True,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response; if not given, as the recipe or run asks, or 512")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use so many problems of each task: the first of a file, of a benchmark evenly"),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message; if not given, as the recipe or run asks")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder for the results and every response")] = None,
) -> None:
    """Measure a model on problems with known answers, beside another one. With --out, run it again to go on."""
    from genius_lite.cli.interrupts import handle_interrupts
    from genius_lite.evaluate.models import evaluate_models, holding, prompt_config, tasks_named, write_results
    from genius_lite.recipe import Evaluate
    from genius_lite.report.console import terminal
    from genius_lite.report.summary import print_results

    if samples < 1 and not greedy:
        raise UserError("--samples 0 and --no-greedy leave nothing to measure")
    if temperature is not None and not 0 < temperature < math.inf:
        raise UserError("--temperature: write a number above 0; the likeliest response is asked for anyway")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    shown = progress()
    # What cannot be written is found out before models are looked for.
    with handle_interrupts(shown) if out else nullcontext(), holding(out) if out else nullcontext():
        compared = [named_model(model, number)]
        if against or Path(model).is_dir():
            first = named_model(against, None) if against else named_model(model, 0)
            if against or first.gguf != compared[0].gguf:
                compared.insert(0, first)
        sources, ways = tasks_named(tasks)
        ways = prompt_configs(model, against) or ways  # a run knows how it asked
        found, responses = evaluate_models(
            compared,
            [t.model_copy(update={"limit": limit, "size": min(limit, t.size)} if limit else {}) for t in sources],
            Evaluate(samples=samples, greedy=greedy),
            prompt_config(ways, system=system, max_tokens=max_tokens, temperature=temperature),
            seed=seed,
            progress=shown,
            keep=out,
            chose=problems_that_chose(model, against),
        )
        if out:
            write_results(out, compared, found, responses)
    print_results([c.name for c in compared], found, sources, terminal())


@app.command()
def chat(
    model: ModelOrRun,
    number: Round = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="MODEL|RUN", parser=source, help="Another model that answers every question too"),
    ] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="The same with a run's base model")] = False,
    system: Annotated[
        str | None, typer.Option(help="System message; if not given, a run's own; '' is the chat template's default")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=100)] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; if not given, as the run asks, or 512")
    ] = None,
    context: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Tokens of the conversation, at most")] = 4096,
    seed: Seed = 0,
) -> None:
    """Talk to a run's model, or to any GGUF; or to two of them side by side."""
    from genius_lite.cli.conversation import chat as chat_with
    from genius_lite.evaluate.models import prompt_config

    if beside and side_by_side:
        raise UserError("--side-by-side is with the base model, --beside with another one; give one of them")
    if side_by_side and not Path(model).is_dir():
        raise UserError(f"{model} is no run folder; name the other model with --beside")
    chosen = [named_model(model, number)]
    if side_by_side:
        chosen.insert(0, named_model(model, 0))
        if chosen[0].gguf == chosen[1].gguf:
            raise UserError(f"the best round of {model} is the base model itself; choose another with --round")
    elif beside:
        chosen.append(named_model(beside, None))
    how = prompt_config(prompt_configs(model, beside), system=system, max_tokens=max_tokens, temperature=temperature)
    chat_with(chosen, how, context=context, seed=seed)


@app.command()
def questions(
    documents: Annotated[
        Path, typer.Argument(metavar="FOLDER", parser=path, help="Documents: Markdown, HTML, text, PDF; or one")
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL|RUN|RECIPE", parser=source, help="Who asks: a GGUF, a run's, or a recipe's")
    ],
    out: Annotated[
        Path, typer.Option(metavar="OUT.jsonl", parser=path, help="The file to write, for queries.source of a recipe")
    ],
    number: Round = None,
    each: Annotated[int, typer.Option(min=1, max=64, help="Questions that are asked about a passage")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask about so many passages, chosen by the seed")] = None,
    passage_tokens: Annotated[int, typer.Option(min=32, max=8192, help="Tokens of a passage, at most")] = 300,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens of a question, a thought included")] = 96,
    temperature: Annotated[float, typer.Option(min=0.01, max=10)] = 0.7,
    seed: Seed = 0,
) -> None:
    """Let a model ask questions about your documents, which a recipe can learn from. Run it again to go on."""
    from genius_lite.cli.asking import Asking, questions_from, summary_lines
    from genius_lite.cli.interrupts import handle_interrupts
    from genius_lite.data.documents import listed
    from genius_lite.evaluate.models import prompt_config
    from genius_lite.recipe.reader import load
    from genius_lite.weights.source import locate
    from genius_lite.weights.untrusted import load_untrusted

    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the name of a file of questions ends in .jsonl")
    require_new_file(out)
    listed(documents)  # what is missing is said before a model is downloaded
    if Path(model).suffix in (".yaml", ".yml"):
        refuse_round(model, number)
        recipe = load(Path(model))
        template = recipe.queries.template
        gguf = load_untrusted(locate(recipe.model)).path
    else:
        template, gguf = prompt_config(prompt_configs(model)).template, named_model(model, number).gguf
    how = Asking(each, passage_tokens, max_tokens, temperature, limit, seed, template)
    shown = progress()
    with handle_interrupts(shown):
        found = questions_from(documents, out, gguf, how, shown)
    for line in summary_lines(found):
        print(visible(line))
    named = json.dumps(out.name, ensure_ascii=False)
    print(visible(f"{out} is written; in a recipe beside it: queries: {{source: {named}}}"))
