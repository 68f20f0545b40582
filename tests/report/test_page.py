"""The report of a real run, as a browser shows it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from genius_lite.text import PROSE, visible
from tests.conftest import FORKED_HELPERS
from tests.report.conftest import open_all
from tests.support.cli import genius

pytestmark = FORKED_HELPERS

TASK = {"check": "regex", "source": "low.jsonl", "options": {"pattern": r"^(?=[\x00-_])()", "group": 1}}
RECIPE = """
model: {gguf: tiny.gguf}
queries: {source: q.txt}
rounds: 2
foresight: {beams: 2, candidates: 3, steps: 2, max_tokens: 24, temperature: 1.5}
pairs: {truncated: keep, min_gap: 0}
learner: {rank: 4, lora_alpha: 8, lr: 1e-2, batch_pairs: 2, parity_limit: 5, precision: fp32}
quantize: {type: Q8_0}
sampler: {slots: 8}
"""
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture(scope="module")
def run(chromium, tmp_path_factory, tiny_llama) -> Path:
    """A finished run with a task and held-out queries, and its report; only where a browser can open it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.gguf").symlink_to(tiny_llama)
    (folder / "q.txt").write_text("\n".join(WORDS))
    # Right is what begins with one of the first 96 bytes: the random model does so now and then.
    (folder / "low.jsonl").write_text("".join(json.dumps({"prompt": w, "answer": ""}) + "\n" for w in WORDS))
    (folder / "r.yaml").write_text(RECIPE + f"evaluate: {{samples: 2, tasks: [{json.dumps(TASK)}]}}\n")
    result = genius("run", "r.yaml", "--out", "a run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "Report:      a run/report.html" in result.stdout
    return folder / "a run"


def read(path: Path):
    return json.loads(path.read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(opened, name: str) -> dict[str, list[str]]:
    """A table's rows as a reader sees them."""
    script = "trs => trs.map(tr => [...tr.cells].map(cell => cell.innerText.trim()))"
    found = opened.locator(f"#table-{name} tbody tr").evaluate_all(script)
    return {row[0]: row[1:] for row in found}


def shown(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign},.{digits}f}".replace("-", "−")


def around(interval: dict[str, float]) -> str:
    return f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


@pytest.mark.browser
def test_the_figures_are_those_of_the_runs_files(run, opened):
    view = opened(run / "report.html")
    reports = [read(run / f"round-{n}" / "report.json") for n in (1, 2)]
    best = read(run / "best.json")["round"]
    assert view.locator("#status").inner_text() == "finished"
    exported = Path(read(run / "summary.json")["exported"]).name
    assert exported in view.locator("#outcome").inner_text()
    open_all(view)

    found = rows(view, "rounds")
    assert found["Sampled tokens"] == [f"{report['rollouts']['sampled_tokens']:,}" for report in reports]
    assert found["Loss"] == [shown(report["training"]["loss"], 4) for report in reports]
    trained = [report["training"] for report in reports]
    assert found["Learned margin, nats"] == [shown(t["margin"], 2, "+") for t in trained]
    assert found["Its standard error, nats"] == [shown(t["margin_error"], 2) for t in trained]
    assert found["Mean foresight value, nats per token"] == [
        shown(report["rollouts"]["mean_value"], 3) for report in reports
    ]

    compared = reports[best - 1] if best else reports[-1]
    (measured,) = compared["evaluation"]
    after, gain = measured["sampled"], measured["sampled_gain"]
    assert 0 < after["estimate"] < 1, "a task that says nothing shows nothing"
    change = view.locator("#result .change", has_text="sampled at").first
    assert change.locator(".after").inner_text().split() == [
        f"{100 * after['estimate']:.1f}", "%", *around(after).split()
    ]  # fmt: skip
    wanted = f"{100 * gain['estimate']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}] points"
    assert change.locator(".verdict strong").inner_text() == wanted.replace("-", "−")
    policies = {"your file", "base model", "round 1", "round 2"}
    assert set(rows(view, "task-0")) >= policies - ({f"round {best}"} if best else set())

    for report in reports:
        made, kept = report["quantized"], rows(view, f"kept-{report['round']}")
        least = min(made["matrices"], key=made["matrices"].get)
        assert kept["Share of the update, all matrices"] == [f"{100 * made['kept']:.0f} %"]
        assert kept[f"Least of all matrices: {least}"] == [f"{100 * made['matrices'][least]:.0f} %"]
        assert ("Learned margin with this file, nats" in kept) == (report["round"] == 1), "the first file is checked"
    scored, kept = reports[0]["quantized"]["scored"], rows(view, "kept-1")
    assert kept["Questions that llama.cpp scored, a pair each"] == [str(scored["questions"])]
    assert kept["Learned margin with the adapter at run time, nats"] == [shown(scored["learned"], 2, "+")]
    assert kept["Learned margin with this file, nats"] == [shown(scored["margin"], 2, "+")]
    assert kept["Its share, with one standard error"] == [f"{100 * scored['kept']:.0f} % ± {100 * scored['error']:.0f}"]
    assert found["Of the update it keeps"] == [f"{100 * report['quantized']['kept']:.0f} %" for report in reports]
    guard = rows(view, "guard")
    kl = next(cells for name, cells in guard.items() if name.startswith("kl:"))
    values = [f"{report['metrics']['signals']['kl']:.3g}" for report in reports]
    assert [cell.split()[0] for cell in kl[2:]] == values
    pairs = rows(view, "pairs")
    assert pairs["Kept"] == [str(len(lines(run / f"round-{n}" / "pairs.jsonl"))) for n in (1, 2)]
    stages = rows(view, "stages")
    (timed,) = [line for line in lines(run / "round-1" / "timings.jsonl") if line["stage"] == "rollouts"]
    assert stages["round 1: rollouts"][0] == f"{timed['seconds']:.1f} s"
    assert stages["round 1: rollouts"][4] == f"{timed['sampler']['peak'] / 1e6:.0f} MB"
    curve = rows(view, "by-update-loss")
    updates = [row for report in reports for row in report["training"]["curve"]]
    assert [cells[0] for cells in curve.values()] == [f"{row['loss']:.3g}".replace("-", "−") for row in updates]
    assert rows(view, "identity")["SHA-256 of the model"] == [read(run / "recipe.json")["model"]]


@pytest.mark.browser
def test_a_tree_unfolds_by_keyboard_to_what_the_rollout_holds(run, opened):
    view = opened(run / "report.html")
    every = lines(run / "round-1" / "pairs.jsonl")
    (found,) = [r for r in lines(run / "round-1" / "rollouts.jsonl") if r["query"]["id"] == every[0]["query_id"]]
    view.locator("#round").select_option(label="1")
    view.locator("#search").fill(f"{found['query']['id'][:8]} {found['query']['prompt'].upper()}")
    assert view.locator("#queries li").all_inner_texts() == [found["query"]["prompt"]]
    assert found["query"]["id"] in view.locator("#tree").inner_text()
    for k, step in enumerate(found["steps"]):
        weights = [math.exp(c["value"] / 0.1) for c in step["candidates"]]
        for i, c in enumerate(step["candidates"]):
            head = view.locator(f"#c-{k}-{i} .head").inner_text()
            share = weights[i] / sum(weights)
            assert f"f {shown(c['value'], 3)}" in head
            assert f"F {100 * share:.{1 if share < 0.1 else 0}f}\u00a0%" in head
            assert f"A {shown(c['advantage'], 3, '+')}" in head
            assert (f"beam {step['kept'].index(i) + 1}" if i in step["kept"] else "f ") in head
    pairs = [p for p in every if p["query_id"] == found["query"]["id"]]
    assert view.locator("#tree .head .chosen").count() == len(pairs) > 0
    for pair in pairs:
        weight = math.exp(min(pair["chosen_advantage"] - pair["rejected_advantage"], 0))
        assert f"weight w {weight:.3f}" in view.locator("#tree .step").nth(pair["step"]).inner_text()

    candidate = found["steps"][0]["candidates"][0]
    view.locator("#queries li").focus()
    for _ in range(20):  # from the list to the first candidate
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.closest('#c-0-0') !== null"):
            break
    view.keyboard.press("Enter")
    said = bytes(t for t in candidate["step"]["tokens"] if t < 256).decode(errors="replace")
    text = view.locator("#c-0-0 pre").first.text_content()
    assert text.replace("↵", "\n") == visible(said, PROSE)
    assert f"Step, {len(candidate['step']['tokens'])} tokens" in view.locator("#c-0-0").inner_text()

    view.locator("#search").fill("")
    view.locator("#only").select_option("pair")
    assert view.locator("#queries li").count() == len({pair["query_id"] for pair in every})
    view.locator("#only").select_option("")
    assert view.locator("#queries li").count() == len(WORDS) - 1, "one is held out, and not searched"
    view.locator("#queries li[tabindex='0']").focus()
    before = view.locator("#queries [aria-selected='true']").inner_text()
    last = view.locator("#queries li").last.inner_text()
    view.keyboard.press("End" if before != last else "Home")
    after = view.locator("#queries [aria-selected='true']")
    assert after.inner_text() != before
    assert after.inner_text() == view.locator("#tree pre").first.inner_text()
    view.locator("#search").fill("nothing of this kind")
    assert view.locator("#tree").inner_text() == "No query matches."


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_no_serious_fault_of_access_and_no_sideways_scrolling(run, opened, width, scheme):
    """The style's widths change no color."""
    from axe_playwright_python.sync_playwright import Axe

    view = opened(run / "report.html", width, scheme)
    open_all(view)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(view).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []


@pytest.mark.browser
def test_the_page_reads_without_its_script(run, opened):
    view, plain = opened(run / "report.html"), opened(run / "report.html", java_script_enabled=False)
    assert plain.get_by_text("script, which has not run").is_visible()
    assert not view.get_by_text("script, which has not run").is_visible()
    assert plain.locator("main svg").count() > 10
    assert not plain.get_by_label("Search queries").is_visible()
