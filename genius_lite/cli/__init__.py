"""The commands. Nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from genius_lite import __version__
from genius_lite.cli import many, models, recipes, runs
from genius_lite.errors import UserError
from genius_lite.text import visible

_FULL_OR_LOCKED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
_LONGEST = 2000  # characters of a message, whatever is quoted in it

app = typer.Typer(
    help="Self-train a quantized GGUF model on unlabelled questions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (runs, recipes, models, many):
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
    """Entry point: a mistake in what was given is one line and exit code 2; faults keep their traceback."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would break into ours
    # Deprecations inside transformers and peft are for their authors, not for whoever runs this.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    # It asks for a kernel of the hub that only inference would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        app()
    except UserError as e:
        said = visible(str(e).replace("\n", " "))  # it may quote models, queries and paths
        print(f"error: {said if len(said) <= _LONGEST else f'{said[:_LONGEST]}...'}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as e:
        from genius_lite.sampler.process import SamplerError

        if not isinstance(e, SamplerError):
            raise
        print(f"error: {visible(str(e))}; the same command goes on from what is finished", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as e:
        if e.errno not in _FULL_OR_LOCKED:
            raise
        named = f" ({visible(str(e.filename))})" if e.filename else ""
        what = (e.strerror or str(e)).lower()
        print(f"error: {what}{named}; mend that, and the same command goes on from what is finished", file=sys.stderr)
        raise SystemExit(2) from None
