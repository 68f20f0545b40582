"""The README's pictures: how they are drawn, and those that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genius_lite.progress import Stage
from genius_lite.report.state import Histogram, RunState, SampleRollout, Work
from genius_lite.report.status import Status
from tests.pictures import PICTURES, THEMES, first_screen, live_view, main
from tests.support import browser
from tests.support.runs import rollout, write_run

LARGEST = 200_000  # bytes


@pytest.mark.parametrize("theme", THEMES)
def test_a_live_view_is_drawn_without_a_path_or_a_network(theme):
    board = RunState(
        out="/home/somebody/runs/mine",
        model="tiny.gguf",
        rounds=2,
        number=2,
        kind=Stage.ROLLOUTS,
        work=Work("round 2: rollouts", "queries", 10, 5, 0.5, 10.0),
        values=Histogram({-40: 1, -20: 3}),
        glimpse=SampleRollout("What is one & one?", [(-0.5, "So: two")]),
    )
    svg = live_view(Status("running", "it goes on", None, board), theme)
    shown = svg.replace("&#160;", " ")
    for said in ("runs/mine", "tiny.gguf", "round 2 of 2", "5/10 queries", "What is one &amp; one?", "-0.50"):
        assert said in shown
    assert "/home" not in svg
    assert set(re.findall(r"\w+://[\w./]+", svg)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", svg)


@pytest.mark.browser
def test_the_first_screen_of_a_report_is_drawn(tmp_path, tiny_llama):
    if not browser.chromium():
        pytest.skip("no Chromium or Chrome on this machine; apt-get install chromium")
    run = write_run(tmp_path / "a run", tiny_llama, [rollout("one")])
    first_screen(run, tmp_path)
    drawn = [(tmp_path / f"report-{theme}.png").read_bytes() for theme in THEMES]
    assert all(png.startswith(b"\x89PNG") and len(png) < LARGEST for png in drawn)
    assert drawn[0] != drawn[1]
    with pytest.raises(SystemExit, match="interrupted"):
        main([str(run), "--to", str(tmp_path)])


@pytest.mark.parametrize("picture", sorted(PICTURES.iterdir()), ids=lambda picture: picture.name)
def test_a_picture_is_small_and_tells_nothing_of_a_machine(picture: Path):
    found = picture.read_bytes()
    assert len(found) < LARGEST
    private = rb"tEXt|iTXt" if picture.suffix == ".png" else rb"/(home|root|Users|tmp|work)\b"
    assert not re.search(private, found)
