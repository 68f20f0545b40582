from __future__ import annotations

import json

from markdown_it import MarkdownIt

from genius_lite.report.gather import gather
from genius_lite.report.page import escaped, markdown
from tests.support.runs import rollout, write_run

EVIL = "<img src=x onerror=alert(1)> | [a](javascript:b) `c` **d**\n# e &lt; \\| @f"


def text_of(source: str) -> str:
    """What a reader sees of inline Markdown; fails where any of it is markup."""
    (inline,) = [token for token in MarkdownIt().enable("table").parse(source) if token.type == "inline"]
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    return "".join(child.content for child in inline.children or [])


def test_untrusted_text_is_text():
    assert text_of(escaped(EVIL)) == " ".join(EVIL.split())
    assert "<" not in escaped(EVIL)


def test_intervals_stay_legible():
    assert escaped("31.2 % [28.0, 34.5]") == "31.2 % [28.0, 34.5]"
    assert escaped("+3.1 [−0.4, +5.9] points") == "+3.1 [−0.4, +5.9] points"
    assert text_of(escaped("[1](http://x) [1]: x")) == "[1](http://x) [1]: x"


def test_a_report_has_its_tables_and_the_recipe_stays_in_its_fence(tmp_path, tiny_llama):
    run = write_run(tmp_path / "a_run *b*", tiny_llama, [rollout(f"q{n}") for n in range(2)])
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["tasks"] = [EVIL]
    recipe["evaluate"]["tasks"] = [{"source": "```\n# out of the fence\n````"}]
    (run / "recipe.json").write_text(json.dumps(recipe))
    shown = markdown(gather(run))
    tokens = MarkdownIt().enable("table").parse(shown)
    assert not any(token.type == "html_block" for token in tokens)
    titles = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles[0] == r"a\_run \*b\*: genius-lite run report"
    assert {"Rounds", "Collapse guard", "Time and memory", "Preference pairs", "Hashes", "Recipe"} <= set(titles)
    assert titles[-1] == "Recipe"
    (fence,) = [token for token in tokens if token.type == "fence"]
    assert fence.content.startswith("seed: 0\n")
    assert "| Candidates | 8 |" in shown
