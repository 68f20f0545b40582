"""The README and docs/: their links lead somewhere, their commands exist, and what they quote is said."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from genius_lite.cli import app

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
_COMMANDS = sorted(
    {
        (page.name, line.partition(" #")[0].strip())
        for page in PAGES
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for line in re.split(r"\n|&&", block)
        if re.search(r"(^|/|-m )genius[-_]lite ", line) and "docker" not in line
    }
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    gone = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert gone == []


@pytest.mark.parametrize(("page", "line"), _COMMANDS)
def test_commands_exist_with_their_options(page, line):
    """Whatever stands behind them is not run here."""
    arguments = shlex.split(re.split(r"genius[-_]lite ", line, maxsplit=1)[1].replace("|", " "))
    group = typer.main.get_command(app)
    with click.Context(group) as context:
        while isinstance(group, click.Group):
            name = arguments.pop(0)
            found = group.get_command(context, name)
            assert found, f"{name} is no command"
            group = found
        group.make_parser(context).parse_args(arguments)


def test_what_is_said_to_be_said_is_said():
    page = (TOP / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = {
        text
        for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
        for text in re.findall(r"`([^`]+)`", row)
        if text != "plan"
    }
    said = "\n".join(
        node.value
        for file in (TOP / "genius_lite").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(quoted) > 25
    assert {text for text in quoted if text not in said} == set()


def test_the_readme_is_short():
    """About three screens of forty lines; the rest is in docs/."""
    assert len((TOP / "README.md").read_text(encoding="utf-8").splitlines()) <= 125


def slug(heading: str) -> str:
    """As GitHub spells the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


LINKING = [*PAGES, *sorted((TOP / "recipes").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(TOP)))
def test_anchors_are_headings(page):
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for file, anchor in links:
        text = (page.parent / file if file else page).read_text(encoding="utf-8")
        assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}, (file, anchor)
