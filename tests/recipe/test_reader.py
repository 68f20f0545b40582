from __future__ import annotations

import re
from pathlib import Path

import pytest

import genius_lite.recipe
from genius_lite.errors import UserError
from genius_lite.recipe import Foresight, Prefix, Recipe, Sampler
from genius_lite.recipe.reader import load, parse
from tests.support.recipes import GOOD, RECIPES

PREPARED = Path("recipes/study/prepare.py").resolve()
NAMED = re.findall(r'"([a-z0-9]+-(?:queries|heldout)|[\w.-]+\.gguf)"', PREPARED.read_text())
MADE = {name if name.endswith(".gguf") else f"{name}.jsonl" for name in NAMED}


def test_defaults_are_the_papers_but_for_what_the_study_found_not_to_work():
    cfg = parse(GOOD, "x/mine.yaml")
    assert (cfg.foresight.beams, cfg.foresight.candidates, cfg.foresight.steps) == (2, 4, 4)
    assert (cfg.foresight.temperature, cfg.learner.alpha, cfg.learner.lr) == (1.0, 1.0, 5e-5)
    assert (cfg.pairs.negatives, cfg.pairs.truncated, cfg.learner.calibration) == ("uniform", "chosen", "cap")
    assert (cfg.pairs.least_gap, cfg.pairs.model_copy(update={"choose": "random"}).least_gap) == (0.05, 0.0)
    paper = load(Path("recipes/paper.yaml"))
    assert (paper.foresight.temperature, paper.pairs.negatives, paper.pairs.least_gap) == (0.6, "foresight", 0.0)
    assert (paper.pairs.truncated, paper.pairs.looping) == ("keep", "keep")
    assert cfg.out == "runs/mine"


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_shipped_recipes_are_valid(path):
    recipe = load(path)
    hub = re.fullmatch(r"hf:[\w.-]+/[\w.-]+/[\w.-]+\.gguf", recipe.model.gguf)
    assert hub or recipe.model.gguf.startswith("python:") or _is_there(recipe.model.gguf)
    assert recipe.queries.source.startswith("hf:") or _is_there(recipe.queries.source)
    for task in recipe.evaluate.tasks:
        assert task.benchmark or task.source.startswith(("hf:", "reasoning_gym:")) or _is_there(task.source)


def _is_there(name: str) -> bool:
    path, made = Path(name), (PREPARED.parent / "data").resolve()
    return path.is_file() or (path.parent == made and path.name in MADE)


def test_the_papers_settings():
    recipe = load(Path("recipes/paper.yaml"))
    search, learner = recipe.foresight, recipe.learner
    assert (search.beams, search.candidates, search.steps, search.temperature) == (2, 4, 4, 0.6)
    assert (learner.loss, learner.alpha, learner.calibration, learner.batch_pairs) == ("aco", 1.0, "cap", 128)
    assert (recipe.queries.limit, recipe.evaluate.temperature) == (25_000, 1.0)


def test_files_are_beside_the_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    assert load(tmp_path / "r.yaml").model.gguf == str(tmp_path / "m.gguf")
    for prefix in Prefix:
        (tmp_path / "r.yaml").write_text(GOOD.replace("q.txt", f"'{prefix}x'"))
        assert load(tmp_path / "r.yaml").queries.source == f"{prefix}x"


def test_unreadable_recipes(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load(tmp_path / "b.yaml")


def test_identity_leaves_out_where_and_how_fast():
    one = parse(GOOD, "a.yaml")
    other = parse(GOOD + "out: elsewhere\nsampler: {threads: 1}\n", "b.yaml")
    assert one.identity() == other.identity()
    assert one.identity() == parse(GOOD + "pairs: {at_least: 3}\n").identity(), (
        "it decides when a run ends, not what it makes"
    )
    assert one.identity() != parse(GOOD + "seed: 1\n").identity()
    assert one.identity() != parse(GOOD + "sampler: {kv_type: Q8_0}\n").identity()
    assert one.identity() != parse(GOOD + "learner: {precision: fp32}\n").identity()
    assert isinstance(one, Recipe)


def test_a_recipe_extends_another_and_settings_replace_both(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(
        "model: {gguf: m.gguf}\nqueries: {source: q.txt, limit: 5}\nevaluate: {tasks: [{source: t.jsonl}]}\n"
    )
    (tmp_path / "sub" / "r.yaml").write_text("extends: ../base.yaml\nqueries: {limit: 7}\nseed: 3\n")
    recipe = load(tmp_path / "sub" / "r.yaml", ["learner.lr=1e-3", "seed=4", "guard.kl={warn: null, halt: 9}"])
    assert (recipe.queries.limit, recipe.seed, recipe.learner.lr, recipe.out) == (7, 4, 1e-3, "runs/r")
    assert (recipe.guard.kl.warn, recipe.guard.kl.halt, recipe.guard.entropy.warn) == (None, 9, 0.5)
    assert recipe.queries.source == str(tmp_path / "q.txt"), "relative to the file that says it"
    assert recipe.evaluate.tasks[0].source == str(tmp_path / "t.jsonl")
    assert load(tmp_path / "base.yaml", ["queries.source=-"]).queries.source == "-", "standard input, and no list"


def test_a_section_of_comments_takes_nothing_of_the_other_recipe_away(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD + "foresight: {beams: 3}\nsampler: auto\n")
    (tmp_path / "r.yaml").write_text("extends: base.yaml\nforesight:\n  # beams: 4\nsampler:\nqueries:\n")
    recipe = load(tmp_path / "r.yaml")
    assert (recipe.foresight.beams, recipe.sampler.slots, recipe.queries.source) == (3, "auto", str(tmp_path / "q.txt"))
    recipe = load(tmp_path / "r.yaml", ["foresight=null", "sampler="])  # says something: the defaults
    assert (recipe.foresight, recipe.sampler) == (Foresight(), Sampler())


def test_a_recipe_that_was_dumped_is_one():
    tasks = (
        "[{source: t.jsonl, check: numeric, options: {tolerance: 0.1}}, {source: 'reasoning_gym:chain_sum', size: 3}]"
    )
    recipe = parse(GOOD + f"evaluate: {{tasks: {tasks}}}\n")
    assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_what_is_set_over_sampler_auto_leaves_the_rest_of_it(tmp_path):
    """It is short for keys: a cluster, or fewer threads, are no reason to measure nothing and to be another run."""
    (tmp_path / "auto.yaml").write_text(GOOD + "sampler: auto\n")
    (tmp_path / "on.yaml").write_text("extends: auto.yaml\nsampler: {cluster: auto}\n")
    whole = load(tmp_path / "auto.yaml")
    for changed in (load(tmp_path / "auto.yaml", ["sampler.threads=4"]), load(tmp_path / "on.yaml", ["out=runs/auto"])):
        assert (changed.policy, changed.sampler.slots, changed.sampler.kv_unified) == ("auto", "auto", "auto")
        assert changed.identity() == whole.identity()
    assert load(tmp_path / "auto.yaml", ["sampler.threads=4"]).sampler.threads == 4
    assert load(tmp_path / "auto.yaml", ["policy=merge", "sampler.threads=4"]).policy == "merge"


def test_what_may_change_while_a_run_goes_on_is_named():
    """Of the keys that `identity` leaves out; those of places, and of the sampler, are told in words."""
    page = Path(genius_lite.recipe.__file__).with_name("reference.md").read_text(encoding="utf-8")
    told = page[page.index("Only what suits the machine may change") :]
    recipe = parse(GOOD)
    kept = recipe.identity()
    sections = ("pairs", "learner", "quantize", "evaluate")
    left_out = {f"{s}.{name}" for s in sections for name in getattr(recipe, s).model_dump() if name not in kept[s]}
    assert "pairs.at_least" in left_out
    named = {*re.findall("`([^`]+)`", told)}
    assert [key for key in left_out if not {key, key.split(".")[1]} & named] == []
