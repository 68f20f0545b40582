"""The list of commands: each is in it, under what it is for, with its whole sentence."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command

from genius_lite.cli import PANELS, app
from tests.support.cli import genius


def test_every_command_is_in_a_panel_with_its_whole_sentence(tmp_path):
    shown = genius("--help", cwd=tmp_path).stdout
    assert "..." not in shown.partition("\nRun:\n")[2]
    words = " ".join(shown.split())
    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert set(commands) == {name for names in PANELS.values() for name in names}
    for name, command in commands.items():
        sentence = " ".join(command.help.split("\n\n")[0].split()).partition(". ")[0]
        assert f" {name} {sentence}" in words
    places = [shown.index(f"\n{panel}:\n") for panel in PANELS]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines())) <= 80


def test_a_run_folder_at_home_is_there(tmp_path, monkeypatch):
    from genius_lite.recipe.reader import load, parse

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "r.yaml").write_text("model: {gguf: m.gguf}\nqueries: {source: q.txt}\nout: ~/runs/x\n")
    there = str(Path.home() / "runs" / "x")
    assert load(tmp_path / "r.yaml").out == there
    assert load(tmp_path / "r.yaml", ['out="~/runs/x"']).out == there
    assert parse("model: {gguf: m}\nqueries: {source: q}\nout: '~/runs/x'\n").out == there


def test_names_of_arguments_are_written_once():
    """typer writes what is optional, and repeated, around the names."""
    for command in (("compare",), ("merge-shards",), ("init",), ("inspect",)):
        first = genius(*command, "--help", cwd=Path.cwd()).stdout.splitlines()[0]
        assert "...}" not in first and "[[" not in first and "..." not in first.replace("}...", ""), first
