"""Tables as RESULTS.md has them."""

from __future__ import annotations


def markdown(rows: list[dict[str, str]]) -> str:
    """Return a table of rows, of which one may lack what another one has, behind an empty line; nothing of no rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join(["", head, "|" + "---|" * len(columns), *body]) if rows else ""
