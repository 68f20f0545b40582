"""What several commands take, and what it means; and how they show what they found."""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genius_lite.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from genius_lite.evaluate.models import NamedModel, PromptConfig
    from genius_lite.pipeline.job import Job
    from genius_lite.recipe import QuantType
    from genius_lite.report.terminal import TerminalProgress
    from genius_lite.results.evaluation import Use


def source(text: str) -> str:
    """Read what may be a path as a recipe does: shells write `~` out at a word's beginning, and not in --out=~/run."""
    from genius_lite.recipe.types import at_home

    return at_home(text)


def path(text: str | Path) -> Path:
    """Read a path, or take an option's default."""
    return Path(source(str(text)))


RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", parser=path, help="A recipe, such as recipes/quickstart.yaml")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, as foresight.beams=3; repeatable"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables")]
Round = Annotated[
    int | None,
    typer.Option("--round", help="0 is the base model; if not given the best, or of a run that goes on the last"),
]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice")]
ModelOrRun = Annotated[
    str, typer.Argument(metavar="MODEL|RUN", parser=source, help="A run folder, or a GGUF: a path, hf: or python:")
]
ModelFile = Annotated[str, typer.Argument(metavar="MODEL", parser=source, help="A GGUF: a path, hf: or python:")]


def command_line() -> str:
    """Return this command, as it is given again."""
    return shlex.join(["genius-lite", *sys.argv[1:]])


def progress(*, stderr: bool = True) -> TerminalProgress:
    """Make what shows the stages of a command; on standard error what is printed stays clean."""
    from genius_lite.report.console import terminal
    from genius_lite.report.terminal import TerminalProgress

    return TerminalProgress(terminal(stderr=stderr))


def show(found: Any, as_json: bool, as_tables: Callable[[Any, Console], None]) -> None:
    """Print records as indented JSON, or as tables."""
    import msgspec

    from genius_lite.report.console import terminal

    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        as_tables(found, terminal())


def read_job(recipe: Path, settings: list[str] | None) -> Job:
    """Read a recipe, its model and its questions, which a terminal shows meanwhile."""
    from genius_lite.pipeline.job import prepare
    from genius_lite.recipe.reader import load
    from genius_lite.report.console import waiting

    with waiting("reading the model and the questions"):
        return prepare(load(recipe, settings or []))


def locate_model(model: str) -> Path:
    """Return the path of a GGUF that is written as in a recipe, downloaded if need be."""
    from genius_lite.recipe import Model
    from genius_lite.weights.source import locate

    return locate(Model(gguf=model))


def named_model(model: str, number: int | None) -> NamedModel:
    """Return the model of a command line: a GGUF, or a round of a run folder; checked, as a stranger's may be."""
    from genius_lite.evaluate.models import NamedModel
    from genius_lite.export.bundle import RunRound
    from genius_lite.weights.untrusted import load_untrusted, prove

    if not Path(model).is_dir():
        refuse_round(model, number)
        return NamedModel(model, load_untrusted(locate_model(model)).path)
    chosen = RunRound.of(Path(model), number)
    name = f"{model}, round {chosen.number}" if chosen.number else "base model"
    if number is None and not chosen.number:
        print(f"note: {chosen.why_base}", file=sys.stderr)
    prove(chosen.gguf)
    return NamedModel(name, chosen.gguf)


def require_new_file(out: Path, instead: str | None = "delete it") -> None:
    """Refuse, by a UserError, to write where no folder is, or a file already; that may be, if `instead` is None."""
    from genius_lite.rundir.disk import require_new

    if instead:
        require_new(out, "file", instead)
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it first")


def refuse_round(model: str, number: int | None) -> None:
    """Refuse a round of what is no run."""
    if number is not None:
        raise UserError(f"--round is for a run folder, and {model} is none; leave it out, or name the run")


def prompt_configs(*models: str | None) -> list[PromptConfig]:
    """Return how the run folders among these models of a command line ask; of a GGUF nothing is known."""
    from genius_lite.export.bundle import RunRound

    return [RunRound.of(Path(model), 0).asked for model in models if model and Path(model).is_dir()]


def problems_that_chose(*models: str | None) -> dict[str, Use]:
    """Return the problems, by their ids, that chose between the rounds of the run folders among these models."""
    from genius_lite.rundir.reader import RunFolder

    found: dict[str, Use] = {}
    for run in (RunFolder(Path(model)) for model in models if model and Path(model).is_dir()):
        uses: dict[str, set[Use]] = defaultdict(set)
        for one in run.base.responses if len(run.rounds) > 1 else ():
            uses[one.problem].add(one.use)
        for problem, of_run in uses.items():
            if of_run == {"choose"} or (of_run != {"report"} and problem not in found):
                found[problem] = "choose" if of_run == {"choose"} else "both"
    return found


def quant_types(names: str) -> list[QuantType]:
    """Read types from a list with commas; a UserError where there is no type of that name."""
    from genius_lite.recipe import quant_type

    return [quant_type(name.strip()) for name in names.split(",") if name.strip()]
