from __future__ import annotations

import math
from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.recipe import Recipe
from genius_lite.recipe_reader import load, parse

GOOD = "model: {gguf: m.gguf}\nqueries: {source: q.txt}\n"
RECIPES = sorted(Path("recipes").rglob("*.yaml"))


def test_defaults_are_the_papers():
    cfg = parse(GOOD, "x/mine.yaml")
    assert (cfg.foresight.beams, cfg.foresight.candidates, cfg.foresight.steps) == (2, 4, 4)
    assert (cfg.foresight.temperature, cfg.learner.alpha) == (0.6, 1.0)
    assert (cfg.foresight.negatives, cfg.learner.calibration) == ("foresight", "cap")
    assert cfg.out == "runs/mine"


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_shipped_recipes_are_valid(path):
    recipe = load(path)
    assert recipe.queries.source.startswith("hf:") or Path(recipe.queries.source).is_file()


def test_files_are_beside_the_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    assert load(tmp_path / "r.yaml").model.gguf == str(tmp_path / "m.gguf")


def test_numbers_in_scientific_notation_are_numbers():
    cfg = parse(GOOD + "learner: {lr: 2e-5, alpha: .inf}")
    assert cfg.learner.lr == 2e-5
    assert math.isinf(cfg.learner.alpha)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "foresight:\n  beems: 2\n", "r.yaml:4: unknown key `foresight.beems`; did you mean `beams`?"),
        (GOOD + "sed: 1\n", "r.yaml:3: unknown key `sed`; did you mean `seed`?"),
        (GOOD + "zzz: 1\n", "r.yaml:3: unknown key `zzz`; known keys: out, model, queries,"),
        (GOOD + "foresight:\n  beams: two\n", "r.yaml:4: `foresight.beams` is 'two': input should be"),
        (GOOD + "quantize: {type: Q9}\n", "r.yaml:3: `quantize.type` is 'Q9': expected 'F16', 'BF16'"),
        (GOOD + "sampler:\n  context: many\n", "r.yaml:4: `sampler.context` is 'many': expected 'auto'"),
        (GOOD + "seed: 1\nseed: 2\n", "r.yaml:4: `seed` stands twice"),
        (GOOD + "foresight:\n\tbeams: 2\n", "r.yaml:4: not YAML"),
        (GOOD + "foresight: {beams: 1, candidates: 1}\n", "r.yaml:1: foresight: beams x candidates"),
        ("model: {gguf: m.gguf}\n", "r.yaml:1: `queries` is missing"),
        ("model: m.gguf\nqueries: {source: q}\n", "r.yaml:1: `model` is 'm.gguf': "),
        ("", "r.yaml:1: a recipe is a mapping"),
        ("- 1\n", "r.yaml:1: a recipe is a mapping"),
    ],
)
def test_mistakes_are_one_line_with_their_place(text, message):
    with pytest.raises(UserError) as e:
        parse(text, "r.yaml")
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


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
    assert one.identity() != parse(GOOD + "seed: 1\n").identity()
    assert isinstance(one, Recipe)
