"""The report as one HTML file that asks no network for anything.

Everything that a model, a query or a recipe says is untrusted. The template escapes it; what the script shows is JSON
in which no `<` stands, and is set as text. The Content-Security-Policy allows this page's own script and style, by
their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from genius_lite import __version__
from genius_lite.report import figures, headline, tables
from genius_lite.report.gather import RunData
from genius_lite.text import amount, plain, prose

_ASSETS = files("genius_lite.report") / "assets"


def page(data: RunData) -> str:
    """Fill the template, which asks `headline`, `tables` and `figures` for what it shows."""
    import jinja2

    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    env.filters |= {"amount": amount, "visible": prose}
    style, script = _asset("report.css"), _asset("report.js")
    return env.from_string(_asset("report.html")).render(
        data=data,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        trees=Markup(embedded(data.explorer.as_dict())),
        recipe=recipe_text(data),
        figures=figures,
        headline=headline,
        tables=tables,
    )


def embedded(value: Any) -> str:
    """Write JSON that can stand inside a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def recipe_text(data: RunData) -> str:
    """Write the recipe as YAML."""
    import yaml

    return yaml.safe_dump(plain(data.recipe), sort_keys=False, allow_unicode=True, width=100)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
