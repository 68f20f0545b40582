from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from genius_lite.report.compare import Row as Compared
from genius_lite.report.compare import print_comparison
from genius_lite.report.console import terminal
from genius_lite.report.state import RunState, SampleRollout
from genius_lite.report.status import Status, print_status
from genius_lite.report.summary import print_summary
from genius_lite.report.terminal import TerminalProgress
from genius_lite.report.view import view
from genius_lite.results.rounds import Summary
from genius_lite.text import PROSE, brief, visible
from tests.support.hostile import ACTING, HOSTILE


def shown(hostile_to) -> str:
    """What a console without colours prints."""
    out = io.StringIO()
    hostile_to(terminal(file=out, width=200))
    return out.getvalue()


def test_what_cannot_be_seen_is_spelled_out():
    assert visible("a\x1b[31mb\u202e\ud800\x7f\x85") == r"a\x1b[31mb\u202e\ud800\x7f\x85"
    assert visible("a\n\tb\N{ZERO WIDTH JOINER}") == r"a\n\tb\u200d"
    assert visible("a\n\tb\N{ZERO WIDTH JOINER}\x07", PROSE) == "a\n\tb\N{ZERO WIDTH JOINER}\\x07"
    assert visible("[red]Grüße, 你好[/] :smile:") == "[red]Grüße, 你好[/] :smile:"


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_is_printable_and_stays(text):
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in visible(text))
    assert visible(visible(text)) == visible(text)
    assert not text.isprintable() or visible(text) == text
    assert not ACTING & set(visible(text))


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(1, 40))
def test_a_quotation_is_one_short_line(text, longest):
    said = brief(text, longest)
    assert len(said) <= longest + 3
    assert len(said.splitlines()) <= 1
    assert not ACTING & set(said)


def test_a_quotation_of_a_megabyte_is_short():
    assert brief("a" * 1_000_000, 40) == "a" * 40 + "..."
    assert brief("one\ntwo") == "one two"


def _table(console):
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table, Panel(HOSTILE), HOSTILE, Text(HOSTILE))


def _progress(console):
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(HOSTILE, total=1)
    with TerminalProgress(console).stage(HOSTILE, 1, "x") as advance:
        advance(1)
    TerminalProgress(console).say(HOSTILE)


def _comparison(console):
    print_comparison([Compared(HOSTILE, HOSTILE, 1, 1, True, 0.5, None, None, None, None, None, None)], console)


def _summary(console):
    out = f"nowhere/{HOSTILE}".replace("\x00", "")
    print_summary(Summary(out, HOSTILE, 0, HOSTILE, False, 1, 0, []), console)


def _status(console):
    board = RunState(out=HOSTILE, model=HOSTILE, command=HOSTILE, glimpse=SampleRollout(HOSTILE, [(-0.5, HOSTILE)]))
    print_status(Status("interrupted", HOSTILE, HOSTILE, board), console)


@pytest.mark.parametrize("show", [_table, _progress, _comparison, _summary, _status])
def test_hostile_names_act_on_no_terminal(show):
    said = shown(show)
    assert not ACTING & set(said)
    assert "[red]m[/]:smile:" in said.replace("\n", "")
    assert r"\x1b[2J" in said


def test_a_hostile_model_keeps_its_line_in_the_view():
    board = RunState(out=HOSTILE, model=HOSTILE, glimpse=SampleRollout(HOSTILE, [(-0.5, HOSTILE)]))
    for line in view(board, "", terminal(file=io.StringIO(), width=80), 24):
        text = "".join(segment.text for segment in line)
        assert cell_len(text) <= 80
        assert text.isprintable()


def test_styles_of_our_own_pass():
    out = io.StringIO()
    terminal(file=out, force_terminal=True, color_system="standard").print(Text(HOSTILE, style="red"))
    assert out.getvalue().startswith("\x1b[31m[red]m")
    assert "\x1b[2J" not in out.getvalue()


def test_an_error_is_one_line_that_acts_on_no_terminal(tmp_path, monkeypatch, capsys):
    from genius_lite.cli import main

    recipe = tmp_path / "[red]r\x1b[31m\u202e\n.yaml"
    recipe.write_text(f"model: {{gguf: nothing.gguf}}\nqueries: {{source: {'q' * 5000}\x85.txt}}\n")
    monkeypatch.setattr("sys.argv", ["genius-lite", "validate", str(recipe)])
    with pytest.raises(SystemExit) as e:
        main()
    said = capsys.readouterr()
    assert (e.value.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.endswith("\n")
    assert said.err[:-1].isprintable()
    assert len(said.err) < 2100


def test_a_model_that_writes_control_codes_answers_in_print(tiny_llama, monkeypatch, capsys):
    from genius_lite.cli.conversation import chat
    from genius_lite.evaluate.models import NamedModel, PromptConfig

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" * 4))
    # A token a byte, at random: control codes come up.
    chat([NamedModel(HOSTILE, tiny_llama)], PromptConfig(None, 40, 9.0), context=512, seed=3)
    said = capsys.readouterr().out
    assert "\\x" in said
    assert not {c for c in said if not c.isprintable() and unicodedata.category(c) != "Zs"} - {"\n", "\t"}
