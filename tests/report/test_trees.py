from __future__ import annotations

import json
import math

import pytest

from genius_lite.errors import UserError
from genius_lite.report import trees
from genius_lite.report.gather import gather
from tests.support.runs import rollout, write_lines, write_run

PROMPTS = ["first?", "second?", "third?"]


@pytest.fixture
def run(tmp_path, tiny_llama):
    return write_run(tmp_path / "run", tiny_llama, [rollout(p) for p in PROMPTS])


def shown(run):
    return gather(run).explorer


def test_a_tree_is_the_rollout_with_its_figures(run):
    found = shown(run)
    first = rollout(PROMPTS[0])
    query = next(q for q in found.queries if q["id"] == first.query.id)
    assert (query["prompt"], query["tokens"]) == ("first?", 6)
    one, two = found.rounds[0]["trees"][first.query.id]["steps"]
    assert [c["step"] for c in one["candidates"]] == ["one\n", "two\n"]
    assert [c["future"] for c in one["candidates"]] == ["ok", "no"]
    # F = softmax(f / 0.1) of f = -0.1 and -0.3: 1 / (1 + exp(-2)).
    assert [c["share"] for c in one["candidates"]] == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert (one["kept"], two["kept"], two["repeats"]) == ([0, 1], [1], 2)
    assert [(c["beam"], c["times"]) for c in two["candidates"]] == [(1, 1), (0, 3)]
    assert [c["advantage"] for c in two["candidates"]] == [0.1, 0.05]
    assert [c["end"] for c in two["candidates"]] == ["length", "end"]
    assert [c["tokens"] for c in two["candidates"]] == [[6, 3], [5, 0]]
    assert one["pair"] == {"chosen": 0, "rejected": 1, "weight": 1.0, "lead": None}
    assert two["pair"] == {"chosen": 1, "rejected": 0, "weight": round(math.exp(-0.05), 6), "lead": None}
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_log_that_grows_gives_its_whole_lines_and_a_damaged_one_is_named(run):
    log = run / "round-1" / "rollouts.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    assert shown(run).rounds[0]["of"] == 2
    log.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match=r"rollouts\.jsonl:1: damaged record"):
        shown(run)


def test_of_many_queries_the_same_few_are_shown_in_every_round_and_the_page_says_so(run, monkeypatch):
    (run / "round-2").mkdir()
    write_lines(run / "round-2" / "rollouts.jsonl", [rollout(p) for p in reversed(PROMPTS)])
    monkeypatch.setattr(trees, "_QUERIES", 2)
    found = shown(run)
    lowest = sorted(rollout(p).query.id for p in PROMPTS)[:2]
    assert [sorted(r["trees"]) for r in found.rounds] == [lowest, lowest]
    assert [r["of"] for r in found.rounds] == [3, 3]
    assert found.note.startswith("The trees of 2 of 3 queries")
    monkeypatch.setattr(trees, "_QUERIES", 3)
    monkeypatch.setattr(trees, "_BYTES", 2400)
    assert all(len(r["trees"]) == 1 for r in shown(run).rounds)


def test_long_text_is_cut(tmp_path, tiny_llama):
    run = write_run(tmp_path / "run", tiny_llama, [rollout("p" * 3000, said="s" * 700)])
    found = shown(run)
    (tree,) = found.rounds[0]["trees"].values()
    assert tree["steps"][0]["candidates"][0]["future"] == "s" * 600 + "… [100 more characters]"
    assert found.queries[0]["prompt"].endswith("p… [1000 more characters]")


def test_without_its_model_a_tree_has_figures_only(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "gone.gguf", [rollout(p) for p in PROMPTS])
    found = shown(run)
    (first, *_) = found.rounds[0]["trees"].values()
    assert first["steps"][0]["candidates"][0]["step"] is None
    assert first["steps"][0]["candidates"][0]["value"] == -0.1
    assert "file is not there any more" in found.note
