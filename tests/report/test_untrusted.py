"""Nothing that a model, a query or a recipe says does anything in the report."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from genius_lite.report.gather import gather
from genius_lite.report.page import fill, page, write_report
from tests.report.conftest import open_all
from tests.support.runs import rollout, write_lines, write_run

EVIL = """<script>window.ran=1</script><img src=x onerror="window.ran=2">"onload='window.ran=3' </script> \u202e\x07"""
SHOWN = EVIL.replace("\u202e\x07", r"\u202e\x07")


@pytest.fixture
def evil(tmp_path, tiny_llama) -> Path:
    """A run whose every text tries to run a script."""
    run = write_run(tmp_path / '<img src=x onerror="window.ran=4">', tiny_llama, [rollout(EVIL, said=EVIL)])
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["evaluate"]["tasks"] = [{"options": {EVIL: EVIL}}]
    recipe["tasks"] = [EVIL]
    (run / "recipe.json").write_text(json.dumps(recipe))
    source = json.loads((run / "hf-checkpoint" / "source.json").read_text())
    (run / "hf-checkpoint" / "source.json").write_text(json.dumps({**source, "origin": EVIL}))
    response = {"task": EVIL, "problem": "p", "sample": -1, "text": EVIL, "tokens": 1, "finish": "end", "score": 1}
    for number in (0, 1):
        folder = run / f"round-{number}" / "evaluation"
        folder.mkdir(parents=True)
        write_lines(folder / "responses.jsonl", [response])
    return run


@pytest.mark.browser
def test_nothing_of_what_a_model_says_runs(evil, opened, tmp_path):
    write_report(evil, tmp_path / "out")
    view = opened(tmp_path / "out" / "report.html")
    open_all(view)
    assert view.evaluate("window.ran") is None
    assert view.locator("img, main script:not([type='application/json'])").count() == 0
    assert view.locator("h1").inner_text() == evil.name
    assert view.locator("#result h3").first.inner_text().startswith(SHOWN)
    assert view.locator("#tree pre").first.text_content() == SHOWN
    assert view.locator("#c-0-0 pre").nth(1).text_content() == SHOWN
    assert view.locator(f"text={json.dumps(SHOWN)}").count() > 3


def test_scripts_and_styles_are_allowed_by_their_hashes_and_nothing_is_fetched(evil):
    found = _Elements()
    html = page(gather(evil))
    found.feed(html)
    assert len(found.texts["script"]) == 2  # the data, and the page's own
    assert json.loads(found.texts["script"][0])["queries"][0]["prompt"] == SHOWN
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    allowed = dict(part.strip().split(" ", 1) for part in policy[1].replace("&#39;", "'").split(";"))
    assert allowed["default-src"] == "'none'"
    for kind, text in (("script", found.texts["script"][1]), ("style", found.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert allowed[f"{kind}-src"] == f"'sha256-{digest}'"
    assert {value[:1] for name, value in found.links if name == "href"} == {"#", "d"}
    assert not [name for name, _ in found.links if name != "href"]
    assert EVIL not in html


def test_embedded_json_cannot_leave_its_element(monkeypatch):
    monkeypatch.setattr("genius_lite.report.page._asset", lambda name: "{{ value | tojson }}")
    text = fill("", value={"a": "</script><!-- <script> & \u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!-- <script> & \u2028"}
    with pytest.raises(ValueError, match="Out of range"):
        fill("", value=math.nan)


class _Elements(HTMLParser):
    """The texts of script and style elements, and every attribute that names an address or a handler."""

    def __init__(self):
        super().__init__()
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.links: list[tuple[str, str]] = []
        self._inside: str | None = None

    def handle_starttag(self, tag, attrs):
        self._inside = tag if tag in self.texts else None
        self.links += [(name, value) for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside].append(data)

    def handle_endtag(self, tag):
        self._inside = None


def test_pairs_left_out_for_an_unknown_reason_are_no_fault(evil):
    """A folder of another version, or of somebody's making."""
    (evil / "round-1" / "filtered.json").write_text(json.dumps({"twice": 2, "gap": 1}))
    html = page(gather(evil))
    assert "values too close" in html
    assert "twice" not in html
