"""What several commands take, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from genius_lite.errors import UserError

if TYPE_CHECKING:
    from genius_lite.recipe import QuantType
    from genius_lite.trial import Asking, Contestant

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, as foresight.beams=3; repeatable"),
]
Round = Annotated[int | None, typer.Option("--round", help="0 is the base model; the best round if not given")]
ModelOrRun = Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A run folder, or a GGUF: a path, hf: or python:")]
ModelFile = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF: a path, hf: or python:")]


def contestant(model: str, number: int | None) -> Contestant:
    """The model of a command line: a GGUF, or a round of a run folder. What no run made has proved itself first."""
    from genius_lite.export.bundle import RunRound
    from genius_lite.recipe import Model
    from genius_lite.trial import Contestant
    from genius_lite.weights.source import locate
    from genius_lite.weights.untrusted import load_untrusted

    if not Path(model).is_dir():
        return Contestant(model, load_untrusted(locate(Model(gguf=model))).path)
    chosen = RunRound.of(Path(model), number)
    name = f"{model}, round {chosen.number}" if chosen.number else "base model"
    return Contestant(name, chosen.gguf if chosen.number else load_untrusted(chosen.gguf).path)


def asked_by(*models: str | None) -> list[Asking]:
    """How the run folders among these models of a command line ask; of a GGUF nothing is known."""
    from genius_lite.export.bundle import RunRound
    from genius_lite.trial import Asking

    runs = [RunRound.of(Path(model), 0) for model in models if model and Path(model).is_dir()]
    return [Asking(run.system, run.answer_tokens, run.temperature) for run in runs]


def quant_types(names: str) -> list[QuantType]:
    """Types from a list with commas."""
    from genius_lite.recipe import QuantType

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in get_args(QuantType)]:
        raise UserError(f"{unknown[0]}: no quantization type of that name; known are {', '.join(get_args(QuantType))}")
    return cast("list[QuantType]", wanted)
