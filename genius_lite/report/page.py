"""A run's report as files: `report.html`, complete in itself, and `report.md`, without its charts and trees.

The page asks no network for anything. Everything that a model, a query or a recipe says is untrusted. The template
escapes it; what the script shows is JSON in which no `<` stands, and is set as text. The Content-Security-Policy allows
this page's own script and style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genius_lite import __version__
from genius_lite.errors import UserError
from genius_lite.progress import Progress
from genius_lite.report import figures, headline, tables
from genius_lite.report.gather import RunData, gather
from genius_lite.report.tables import Table
from genius_lite.rundir.disk import put
from genius_lite.rundir.folder import private, refuse_links
from genius_lite.text import accuracy, amount, gain, interval, number, percent, plain, prose, unbroken

_ASSETS = files("genius_lite.report") / "assets"
# An interval is left as it is: nothing but figures stands in its brackets, and no link follows.
_MEANS_SOMETHING = re.compile(r"\[[\d.,+\N{MINUS SIGN} ]+\](?![(\[:])|([\\`*_\[\]|~$@])")


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


def page(data: RunData | None, live: Markup | None = None, name: str = "") -> str:
    """Fill the template, which asks `headline`, `tables` and `figures` for what it shows; `live` stands before that.

    `data` is None where there is no report yet, or none can be made; `name` is the run's then.
    """
    return fill(
        "report.html",
        data=data,
        name=data.name if data else name,
        recipe=recipe_text(data) if data else "",
        live=live,
        figures=figures,
        headline=headline,
        tables=tables,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        policy=Markup(policy(live is not None)),
        style=Markup(_assets("css", live is not None)),
        script=Markup(_assets("js", live is not None)),
    )


def policy(live: bool) -> str:
    """Return the Content-Security-Policy of a page; one that is live may ask its own server."""
    digests = (hashlib.sha256(_assets(kind, live).encode()).digest() for kind in ("js", "css"))
    script, style = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    asks = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; {asks}img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def fill(template: str, **values: Any) -> Markup:
    """Fill a template among the assets."""
    import jinja2

    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    env.filters |= {"amount": amount, "gain": gain, "interval": interval, "number": number, "percent": percent}
    env.filters |= {"unbroken": unbroken, "visible": prose}
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return Markup(env.from_string(_asset(template)).render(**values))


def recipe_text(data: RunData) -> str:
    """Write the recipe as YAML."""
    import yaml

    return yaml.safe_dump(plain(data.recipe, finite=False), sort_keys=False, allow_unicode=True, width=100)


def _assets(kind: str, live: bool) -> str:
    """Return the page's whole script (`js`), or its style (`css`)."""
    return "".join(_asset(f"{name}.{kind}") for name in ("report", "live")[: 1 + live])


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def markdown(data: RunData) -> str:
    """Write a run's report."""
    parts = [f"# {escaped(prose(data.name))}: genius-lite run report", escaped(headline.outcome(data))]
    for name, answered in data.by_task.items():
        before, after = headline.compared(data, answered)
        parts.append(f"## {escaped(prose(name))}: {amount(before.problems, 'problems')}")
        parts.append("\n".join(f"- {_change(change)}" for change in headline.changes(data, before, after)))
        parts.append(in_markdown(tables.task_table(data, answered), 3))
        parts.append(in_markdown(tables.beside_table(answered), 3))
    parts += map(escaped, headline.notes(data))
    if signals := tables.signals_table(data):
        parts.append(in_markdown(signals))
    parts.append(in_markdown(tables.rounds_table(data)))
    raised = [f"- {name}, {alarm.level}: {escaped(prose(alarm.line))}" for name, alarm in data.alarms]
    parts += ["\n".join(["## Alarms\n", *raised])] * bool(raised)
    after = [tables.guard_table(data), *tables.kept_tables(data), tables.stages_table(data)]
    parts += map(in_markdown, [*after, tables.pairs_table(data), tables.identity_table(data)])
    parts.append(f"## Recipe\n\n{_fenced(recipe_text(data))}")
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Write text that Markdown takes for text, on one line."""
    one_line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MEANS_SOMETHING.sub(lambda m: f"\\{m[1]}" if m[1] else m[0], one_line)


def _change(change: headline.Change) -> str:
    after = f" to {accuracy(change.after)}" if change.after else ""
    gained = f"{gain(change.gain)} points. " if change.gain else ""
    return escaped(f"{change.name}: {accuracy(change.before)}{after}. {gained}{change.verdict}")


def in_markdown(table: Table, level: int = 2) -> str:
    """Write a table under a heading of a level."""
    rows = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    rows += [[f"**{escaped(row[0])}**" if n in table.marked else escaped(row[0]), *map(escaped, row[1:])]
             for n, row in enumerate(table.rows)]  # fmt: skip
    shown = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{'#' * level} {escaped(table.title)}\n\n{shown}" + (f"\n\n{escaped(table.note)}" if table.note else "")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}yaml\n{text}{fence}"
