"""The report as Markdown: what the page says, without its charts and trees."""

from __future__ import annotations

import re

from genius_lite.report import headline, tables
from genius_lite.report.gather import RunData
from genius_lite.report.page import recipe_text
from genius_lite.report.tables import Table
from genius_lite.text import amount, prose

# An interval is left as it is: nothing but figures stands in its brackets, and no link follows.
_MEANS_SOMETHING = re.compile(r"\[[\d.,+\N{MINUS SIGN} ]+\](?![(\[:])|([\\`*_\[\]|~$@])")


def markdown(data: RunData) -> str:
    """Write a run's report."""
    parts = [f"# {escaped(prose(data.name))}: genius-lite run report", escaped(headline.outcome(data))]
    by_task = headline.task_changes(data), tables.task_tables(data), tables.beside_tables(data)
    for task, *shown in zip(*by_task, strict=True):
        parts.append(f"## {escaped(task.task)}: {amount(task.problems, 'problems')}")
        parts.append("\n".join(map(_change, task.changes)))
        parts += [in_markdown(table, 3) for table in shown]
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
    before = f"{change.before} {change.beside[0]}"
    after = f" to {escaped(f'{change.after} {change.beside[1]}')}" if change.after else ""
    gain = f"{escaped(change.gain)}. " if change.gain else ""
    return f"- {escaped(change.name)}: {escaped(before)}{after}. {gain}{change.verdict}"


def in_markdown(table: Table, level: int = 2) -> str:
    """Write a table under a heading of a level."""
    rows = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    rows += [[f"**{escaped(row[0])}**" if n in table.marked else escaped(row[0]), *map(escaped, row[1:])]
             for n, row in enumerate(table.rows)]  # fmt: skip
    shown = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{'#' * level} {escaped(table.title)}\n\n{shown}" + (f"\n\n{escaped(table.note)}" if table.note else "")


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
