"""With nothing but a GGUF: the learner's model is the sampler's, and a merged adapter is the adapter's; or why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from genius_lite.errors import UserError
from genius_lite.learner.model import load_policy, takes_trees
from genius_lite.learner.targets import without_adapter
from genius_lite.recipe import Learner
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.importing import Base, check_supported, import_checkpoint
from genius_lite.weights.merge import merge
from tests.architectures.agreement import AGREE, MATTERS, MERGED, apart, by_learner, by_sampler
from tests.architectures.table import FAMILIES, REFUSED, TAKEN, WITHOUT_ADAPTER, markdown, summary
from tests.architectures.zoo import ARCHITECTURES, RECURRENT, WINDOW
from tests.support.adapters import random_adapter


@pytest.fixture(scope="module", params=TAKEN)
def base(request, zoo, tmp_path_factory) -> Base:
    """A tiny model, imported."""
    folder = tmp_path_factory.mktemp(request.param)
    gguf = gguf_file.read(zoo / f"{request.param}.gguf")
    check_supported(gguf)
    import_checkpoint(gguf, folder / "hf-checkpoint", lambda n: None)
    return Base(gguf, folder / "hf-checkpoint")


def test_learner_and_sampler_agree_and_so_do_adapter_and_merged_file(base, tmp_path):
    folder = tmp_path / "adapter"
    random_adapter(base.hf_checkpoint, folder, spread=0.03)
    adapter = Adapter.load(folder, base)
    kept = merge(base, adapter, "source", tmp_path / "merged.gguf")
    assert kept.share == pytest.approx(1, abs=0.01)
    policy = load_policy(base.hf_checkpoint, folder, Learner(), "cpu", "fp32", seed=0)
    assert without_adapter(policy) == WITHOUT_ADAPTER.get(base.gguf.architecture, [])
    with policy.disable_adapter():
        unchanged = by_learner(policy)
    changed = by_learner(policy)
    assert apart(unchanged, by_sampler(base.gguf.path)) < AGREE
    assert apart(changed, by_sampler(tmp_path / "merged.gguf")) < MERGED
    assert apart(changed, unchanged) > MATTERS, "the adapter must matter for this to show anything"


@pytest.mark.parametrize("name", [name for name, found in ARCHITECTURES.items() if not found.as_llama_cpp])
def test_the_learner_computes_what_llama_cpp_does_and_takes_trees(zoo, name):
    policy = load_policy(zoo / name, None, Learner(), "cpu", "fp32", seed=0)
    assert apart(by_learner(policy), by_sampler(zoo / f"{name}.gguf")) < AGREE
    assert takes_trees(policy, WINDOW - 1) == (name not in RECURRENT)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_in_a_line_that_says_what_would_be(zoo, tmp_path, name):
    source = gguf_file.read(zoo / f"{name}.gguf")
    for refused in (check_supported, lambda source: import_checkpoint(source, tmp_path / "none", lambda n: None)):
        with pytest.raises(UserError, match=r"from a GGUF .*; set model\.weights to the original model's safetensors"):
            refused(source)
    assert not (tmp_path / "none").exists()
    check_supported(source, with_weights=True)


def test_every_model_is_in_the_table():
    assert set(TAKEN) | set(REFUSED) == {name for names in FAMILIES.values() for name in names} == set(ARCHITECTURES)
    assert not set(TAKEN) & set(REFUSED)
    assert markdown() in Path("docs/models.md").read_text(encoding="utf-8")
    assert summary() in Path("README.md").read_text(encoding="utf-8")
    table = markdown().splitlines()
    assert "| Gemma 3 | `gemma3` | yes | yes |  |" in table
    assert f"| Granite 4 | `granite`, `granitehybrid` | no | yes | {REFUSED['granite4']} |" in table
