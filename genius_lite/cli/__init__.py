"""The commands. Nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from genius_lite import __version__
from genius_lite.cli import models, recipes, runs
from genius_lite.cli.surroundings import drop_output, fault_line, settle
from genius_lite.errors import UserError
from genius_lite.hardware.system import SHORT_SPIN
from genius_lite.text import visible

PANELS = {
    "Run": ("init", "validate", "plan", "run", "questions", "reference"),
    "Look": ("status", "watch", "report", "compare"),
    "Model": ("chat", "eval", "inspect", "export"),
    "Machine": ("doctor", "bench", "sample", "merge-shards", "cluster"),
}
"""All commands, by what each is for."""
_WHOLE = 1000  # characters of a sentence
_LONGEST = 2000  # characters of a message, whatever is quoted in it


class Commands(TyperGroup):
    """A group whose help has panels, as Typer's has with Rich; plain text, which goes into pipes and files as it is."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; Typer's own list cuts sentences off at the end of a line."""
        for panel, names in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(_WHOLE)) for name in names])


app = typer.Typer(
    cls=Commands,
    help="Self-train a quantized GGUF model on unlabelled questions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (runs, recipes, models):
    app.add_typer(group.app)


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


def main() -> None:
    """Run a command: a mistake in what was given, and what the machine refuses, is one line and exit code 2.

    Faults of the program keep their traceback.
    """
    settle()
    # The libraries' own bars would break into ours; torch's threads are those that also train.
    for name, value in {"TQDM_DISABLE": "1", **SHORT_SPIN}.items():
        os.environ.setdefault(name, value)
    # Deprecations inside transformers and peft are for their authors, not for whoever runs this.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    # It asks for a kernel of the hub that only inference would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where it can still be said that nobody takes it
    except UserError as e:
        _refuse(str(e))
    except KeyboardInterrupt:  # while modules are imported; later each command has its own answer
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head`: whoever read has what they wanted
        drop_output()
        raise SystemExit(1) from None
    except Exception as e:
        if not (line := fault_line(e)):
            raise
        _refuse(line)


def _refuse(line: str) -> NoReturn:
    said = visible(line.replace("\n", " "))  # it may quote models, queries and paths
    with suppress(OSError):  # the terminal, or whoever read this, may have gone
        print(f"error: {said if len(said) <= _LONGEST else f'{said[:_LONGEST]}...'}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    raise SystemExit(2) from None
