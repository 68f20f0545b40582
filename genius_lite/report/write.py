"""A run's report as files: `report.html`, which is complete in itself, and `report.md`."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.progress import Progress
from genius_lite.report.gather import gather
from genius_lite.report.markdown import markdown
from genius_lite.report.page import page
from genius_lite.rundir.disk import put
from genius_lite.rundir.folder import private, refuse_links


def write_report(run: Path, to: Path) -> list[Path]:
    """Write the report of a run folder, finished or not, into the folder `to`; one that is there is replaced.

    It holds questions and responses. In the run's folder it is for its user alone, as that is; elsewhere its modes
    follow the umask, since the user says for whom it is.

    Raises:
        UserError: `run` is no run folder, or a file in it is damaged, or a link, and nothing is written then; or `to`
            cannot be written.
        OSError: a file of the run cannot be read.
    """
    data = gather(run)
    refuse_links(run)
    texts = {"report.html": page(data), "report.md": markdown(data)}
    try:
        to.mkdir(parents=True, exist_ok=True)
        with private() if to.samefile(run) else nullcontext():
            for name, text in texts.items():
                put(to / name, text.encode())
    except OSError as e:
        raise UserError(f"{e.filename or to} cannot be written: {e.strerror}; name another folder with --to") from None
    return [to / name for name in texts]


def write_report_if_possible(run: Path, progress: Progress) -> None:
    """Write the report of a run that ends: nothing of the run depends on it, so what hinders it is only said."""
    try:
        write_report(run, run)
    except (UserError, OSError) as e:
        progress.say(f"warning: no report ({e}); genius-lite report {shlex.quote(str(run))} tries again")
