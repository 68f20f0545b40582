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
from genius_lite.text import amount, number, percent, plain, prose, unbroken

_ASSETS = files("genius_lite.report") / "assets"


def page(data: RunData, live: Markup | None = None) -> str:
    """Fill the template, which asks `headline`, `tables` and `figures` for what it shows.

    Args:
        live: what a server that keeps the page up to date puts before the report.
    """
    trees, recipe = Markup(embedded(data.explorer.as_dict())), recipe_text(data)
    modules = {"figures": figures, "headline": headline, "tables": tables}
    return _page(data.name, live, data=data, trees=trees, recipe=recipe, **modules)


def page_without_report(name: str, live: Markup) -> str:
    """Make the page of a run whose report is not there yet, or cannot be made."""
    return _page(name, live, data=None)


def policy(live: bool) -> str:
    """Return the Content-Security-Policy of a page; one that is live may ask its own server."""
    script, style = (_hash(_assets(kind, live)) for kind in ("js", "css"))
    asks = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; {asks}img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def fill(template: str, **values: Any) -> Markup:
    """Fill a template among the assets."""
    import jinja2

    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    env.filters |= {"amount": amount, "percent": percent, "number": number, "visible": prose, "unbroken": unbroken}
    return Markup(env.from_string(_asset(template)).render(**values))


def _page(name: str, live: Markup | None, **shown: Any) -> str:
    return fill(
        "report.html",
        name=name,
        live=live,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        policy=Markup(policy(live is not None)),
        style=Markup(_assets("css", live is not None)),
        script=Markup(_assets("js", live is not None)),
        **shown,
    )


def embedded(value: Any) -> str:
    """Write JSON that can stand inside a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def recipe_text(data: RunData) -> str:
    """Write the recipe as YAML."""
    import yaml

    return yaml.safe_dump(plain(data.recipe), sort_keys=False, allow_unicode=True, width=100)


def _assets(kind: str, live: bool) -> str:
    """Return the page's whole script (`js`), or its style (`css`)."""
    return "".join(_asset(f"{name}.{kind}") for name in ("report", "live")[: 1 + live])


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
