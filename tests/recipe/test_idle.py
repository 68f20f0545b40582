"""What a recipe sets without effect is told, and nothing else is."""

from __future__ import annotations

import pytest

from genius_lite.recipe.idle import without_effect
from genius_lite.recipe.reader import load
from tests.support.recipes import GOOD, RECIPES


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["learner.loss=sft", "learner.beta=0.2"], "learner.beta has no effect with loss: sft"),
        (
            ["learner.loss=sft", "learner.alpha=2.0", "learner.calibration=floor", "learner.length_normalize=true"],
            "learner.alpha, learner.calibration, learner.length_normalize have no effect with loss: sft",
        ),
        (["learner.loss=sft", "learner.sft_weight=1.0"], "learner.sft_weight adds the loss to itself with loss: sft"),
        (["learner.loss=dpo", "learner.alpha=.inf"], "learner.alpha has no effect with loss: dpo"),
        (["learner.simpo_gamma=1.0"], "learner.simpo_gamma has no effect with loss: aco"),
        (["learner.loss=simpo", "learner.ropo_alpha=5.0"], "learner.ropo_alpha has no effect with loss: simpo"),
        (["learner.loss=simpo", "learner.length_normalize=true"], "learner.length_normalize has no effect with loss"),
        (["pairs.choose=random", "pairs.negatives=foresight"], "pairs.negatives has no effect with choose: random"),
        (["foresight.steps=0", "foresight.tau=1.0"], "foresight.tau has no effect with steps: 0"),
        (["foresight.steps=1", "foresight.select=greedy"], "foresight.select has no effect with steps: 1"),
        (
            ["foresight.steps=3", "foresight.beams=16", "foresight.tau=1.0", "foresight.select=greedy"],
            "foresight.tau, foresight.select have no effect with beams: 16, which keep every candidate",
        ),
        (["foresight.select=greedy", "foresight.tau=1.0"], "foresight.tau has no effect with select: greedy"),
        (["rounds=1", "policy=adapter", "pairs.at_least=4"], "policy, pairs.at_least have no effect with rounds: 1"),
        (["evaluate.samples=8", "evaluate.sweep=[]"], "evaluate.samples, evaluate.sweep have no effect without tasks"),
        (
            ["evaluate.tasks=[{source: t.jsonl}]", "evaluate.samples=0", "evaluate.sweep=[0.5]"],
            "evaluate.sweep has no effect with samples: 0",
        ),
    ],
)
def test_a_key_that_nothing_reads_is_told(tmp_path, settings, told):
    (tmp_path / "r.yaml").write_text(GOOD)
    (note,) = without_effect(load(tmp_path / "r.yaml", settings))
    assert note.startswith(told)


@pytest.mark.parametrize(
    "settings",
    [
        ["learner.loss=sft", "learner.beta=auto", "learner.alpha=1.0"],  # the defaults
        ["learner.loss=ipo", "learner.beta=0.2", "learner.length_normalize=true", "learner.sft_weight=1.0"],
        ["learner.loss=simpo", "learner.simpo_gamma=1.0"],
        ["foresight.steps=0", "foresight.tau=1.0", "pairs.negatives=foresight"],
        ["foresight.select=greedy", "foresight.tau=1.0", "pairs.negatives=foresight"],
        ["foresight.steps=3", "foresight.beams=15", "foresight.tau=1.0"],
        ["rounds=1", "policy=auto"],
        ["rounds=2", "policy=adapter", "pairs.at_least=4"],
        ["evaluate.tasks=[{source: t.jsonl}]", "evaluate.samples=8", "evaluate.sweep=[]"],
    ],
    ids=str,
)
def test_a_key_that_is_read_is_not_told(tmp_path, settings):
    (tmp_path / "r.yaml").write_text(GOOD)
    assert [*without_effect(load(tmp_path / "r.yaml", settings))] == []


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_shipped_recipes_set_nothing_without_effect(path):
    assert [*without_effect(load(path))] == []
