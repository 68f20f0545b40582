from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as T
from safetensors.numpy import load_file, save_file

from genius_lite.data.vocabulary import Vocabulary
from genius_lite.errors import UserError
from genius_lite.learner.model import response_logps
from genius_lite.learner.packing import trees
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import BASE_FILE, IMATRIX_FILE, Adapter, Matrix, read_factors, write_imatrix
from genius_lite.weights.gguf_file import GGUF
from genius_lite.weights.importing import Base, import_checkpoint
from genius_lite.weights.merge import (
    Rounded,
    merge,
    planned_types,
    requantize,
    round_base,
)
from genius_lite.weights.quantize import quantized_bytes, types_bytes
from tests.faults import raw
from tests.faults.sound import SIZES
from tests.support.adapters import random_adapter, sampled_and_scored, torch_scores
from tests.support.engine import PROMPT
from tests.support.models import TEMPLATE, tiny_gguf

QUERIES = Path("recipes/quickstart-queries.jsonl")
UP, K = "blk.0.ffn_up.weight", "blk.1.attn_k.weight"


def base_of(tiny) -> Base:
    return Base(gguf_file.read(tiny.gguf), tiny.hf_checkpoint)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[T, Base]:
    """The tiny Llama in some types, each imported; their headers say their type."""
    found = {}
    for kind, file_type in ((T.F32, 0), (T.F16, 1), (T.BF16, 32), (T.Q8_0, 7), (T.Q4_0, 2)):
        folder = tmp_path_factory.mktemp(kind.name)
        tiny_gguf(folder / "plain.gguf", "llama", kind=kind, width=256)
        plain = gguf_file.read(folder / "plain.gguf")
        said = {"general.file_type": file_type, "general.quantization_version": 2}
        gguf_file.write(folder / "m.gguf", plain, plain.tensors, plain.raw_blocks, said)
        found[kind] = imported(folder / "m.gguf")
    folder = tmp_path_factory.mktemp("Q5_K_M")  # which changes if it is quantized again
    requantize(found[T.F16].gguf, "Q5_K_M", folder / "m.gguf")
    found[T.Q5_K] = imported(folder / "m.gguf")
    return found


def imported(path: Path) -> Base:
    source = gguf_file.read(path)
    import_checkpoint(source, path.parent / "hf-checkpoint", lambda n: None)
    return Base(source, path.parent / "hf-checkpoint")


def made_up(base: Base, names=(UP, K), size: float = 0.01, importance: Matrix | None = None) -> Adapter:
    """An adapter of these tensors, whose updates have about this size."""
    rng, shapes = np.random.default_rng(1), {t.name: t.shape for t in base.gguf.tensors}
    factors = {}
    for name in names:
        rows, columns = shapes[name]
        b, a = rng.standard_normal((rows, 4)) * size / 2, rng.standard_normal((4, columns))
        factors[name] = (b.astype(np.float32), a.astype(np.float32))
    return Adapter(factors, 4, 4, importance or {})


def importance_of(base: Base, names=(UP, K)) -> Matrix:
    rng = np.random.default_rng(2)
    columns = {t.name: t.columns for t in base.gguf.tensors}
    return {name: np.exp(rng.standard_normal(columns[name])).astype(np.float32) for name in names}


def tensors(file: GGUF) -> dict[str, np.ndarray]:
    return {t.name: file.dequantized(t) for t in file.tensors}


def raws(file: GGUF) -> dict[str, bytes]:
    return {t.name: file.raw(t).tobytes() for t in file.tensors}


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q5_K], ids=lambda kind: kind.name)
def test_without_an_adapter_the_types_of_the_source_give_the_source(bases, tmp_path, kind):
    source = bases[kind].gguf.path.read_bytes()
    # F32 is no type to ask for, and llama.cpp gives the embeddings of a Q4_0 file another one.
    same = {T.F32: [], T.Q4_0: [], T.Q5_K: ["Q5_K_M"]}.get(kind, [kind.name])
    for wanted in ("source", *same):
        kept = merge(bases[kind], None, wanted, tmp_path / "m.gguf")
        assert (tmp_path / "m.gguf").read_bytes() == source
        assert (kept.share, kept.by_matrix) == (None, {})


def test_merged_f16_in_llama_cpp_equals_the_adapter_in_torch(tiny, tmp_path):
    policy = random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.05)
    base = base_of(tiny)
    kept = merge(base, Adapter.load(tmp_path / "adapter", base), "F16", tmp_path / "p.gguf")
    assert kept.share == pytest.approx(1, abs=0.01)
    assert len(kept.by_matrix) == 2 * 7
    prompts = [[*PROMPT, i] for i in range(20)]
    change = 0.0
    for prompt, (response, scores) in zip(prompts, sampled_and_scored(tmp_path / "p.gguf", prompts, 30), strict=True):
        expected = torch_scores(policy, prompt, response)
        assert np.abs(expected - scores).mean() < 0.01
        with policy.disable_adapter():
            change += np.abs(torch_scores(policy, prompt, response) - expected).mean()
    assert change / 20 > 0.1, "the adapter must matter for this to show anything"


def test_merged_f16_is_torchs_merge_but_for_the_rounding(tiny, tmp_path):
    policy, base = random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.05), base_of(tiny)
    merge(base, Adapter.load(tmp_path / "adapter", base), "F16", tmp_path / "p.gguf")
    theirs = {name: weight.numpy() for name, weight in policy.merge_and_unload().state_dict().items()}
    written, tensor_map, before = tensors(gguf_file.read(tmp_path / "p.gguf")), base.tensor_map, tensors(base.gguf)
    changed = 0
    for name, place in tensor_map.tensors.items():
        expected = tensor_map.take(name, theirs[place.name])
        steps = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
        off = (written[name] - expected) / steps
        assert np.abs(off).max() <= 1.01, "a neighbour on the grid"
        assert abs(off.mean()) < 0.05
        changed += np.abs(written[name] - before[name]).max() > 0.05
    assert changed == 2 * 7


@pytest.mark.parametrize("kind", [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q5_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("wanted", ["source", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_1", "Q4_0"])
def test_what_is_said_to_be_kept_is_in_the_file_and_is_nearly_all(bases, tmp_path, kind, wanted):
    base = bases[kind]
    adapter = made_up(base, size=0.005, importance=importance_of(base))
    kept = merge(base, adapter, wanted, tmp_path / "m.gguf")
    round_base(base, adapter, wanted, tmp_path / "base.gguf")
    written, rounded = (gguf_file.read(tmp_path / f"{name}.gguf") for name in ("m", "base"))
    assert [t.type for t in written.tensors] == [t.type for t in rounded.tensors]
    after, before, whole = tensors(written), tensors(rounded), []
    for name in adapter.factors:
        update = adapter.update(name, slice(None)).astype(np.float64)
        products = ((after[name] - before[name]) * update).sum(), np.square(update).sum()
        assert kept.by_matrix[name] == pytest.approx(products[0] / products[1], rel=1e-3)
        whole.append(products)
    assert kept.share == pytest.approx(np.sum(whole, 0)[0] / np.sum(whole, 0)[1], rel=1e-3)
    assert kept.by_matrix.keys() == adapter.factors.keys()
    assert kept.share == pytest.approx(1, abs=0.1)


def test_an_f32_tensor_takes_the_update_exactly(bases, tmp_path):
    base = bases[T.F32]
    adapter = made_up(base)
    kept = merge(base, adapter, "source", tmp_path / "m.gguf")
    written, before = tensors(gguf_file.read(tmp_path / "m.gguf")), tensors(base.gguf)
    for name in adapter.factors:
        assert np.array_equal(written[name], before[name] + adapter.update(name, slice(None)))
    assert kept.share == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q5_K], ids=lambda kind: kind.name)
def test_what_the_adapter_does_not_touch_stays_byte_for_byte(bases, tmp_path, kind):
    base = bases[kind]
    merge(base, made_up(base), "source", tmp_path / "m.gguf")
    before, after = raws(base.gguf), raws(gguf_file.read(tmp_path / "m.gguf"))
    assert {name for name in before if before[name] != after[name]} == {UP, K}
    header = base.gguf.tensors[0].offset
    assert (tmp_path / "m.gguf").read_bytes()[:header] == base.gguf.path.read_bytes()[:header]


def test_in_another_type_only_matrices_change_theirs(bases, tmp_path):
    base = bases[T.Q8_0]
    merge(base, made_up(base), "Q4_0", tmp_path / "m.gguf")
    written = gguf_file.read(tmp_path / "m.gguf")
    before, after = raws(base.gguf), raws(written)
    for old, new in zip(base.gguf.tensors, written.tensors, strict=True):
        assert (old.name, old.shape) == (new.name, new.shape)
        if old.type == new.type:
            assert before[old.name] == after[new.name]
    assert {t.name for t in written.tensors if t.type == T.F32} == {
        t.name for t in base.gguf.tensors if t.type == T.F32
    }
    assert {t.type for t in written.tensors} >= {T.F32, T.Q4_0}


def test_a_weight_that_f16_cannot_hold_makes_its_tensor_f32(bases, tmp_path):
    base = bases[T.F16]
    adapter = made_up(base)
    b, a = (x.copy() for x in adapter.factors[UP])
    b[0], a[:, 5] = 0, 1
    b[0, 0], a[0, 5] = 70_000, 1
    adapter.factors[UP] = (b, a)
    kept = merge(base, adapter, "F16", tmp_path / "m.gguf")
    written = gguf_file.read(tmp_path / "m.gguf")
    assert {t.name for t in written.tensors if t.type == T.F32 and len(t.shape) == 2} == {UP}
    assert all(t.type == old.type for t, old in zip(written.tensors, base.gguf.tensors, strict=True) if t.name != UP)
    expected = tensors(base.gguf)[UP] + adapter.update(UP, slice(None))
    assert expected.max() > 65504
    assert np.array_equal(tensors(written)[UP], expected)
    assert written.metadata["general.file_type"] == 1
    assert kept.by_matrix[UP] == pytest.approx(1, rel=1e-5)
    # BF16 holds it.
    merge(base, adapter, "BF16", tmp_path / "b.gguf")
    assert {t.type for t in gguf_file.read(tmp_path / "b.gguf").tensors if len(t.shape) == 2} == {T.BF16}
    llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, verbose=False).close()


def test_so_does_one_that_nothing_was_learned_on(bases, tmp_path):
    own = bases[T.BF16].gguf
    held = {t.name: own.dequantized(t) for t in own.tensors}
    held["token_embd.weight"].flat[7] = 100_000
    targets = [replace(t, type=T.F32) for t in own.tensors]
    gguf_file.write(tmp_path / "own.gguf", own, targets, lambda t: [held[t.name]], {})
    requantize(gguf_file.read(tmp_path / "own.gguf"), "F16", tmp_path / "m.gguf")
    written = gguf_file.read(tmp_path / "m.gguf")
    assert {t.name for t in written.tensors if t.type == T.F32 and len(t.shape) == 2} == {"token_embd.weight"}
    assert tensors(written)["token_embd.weight"].flat[7] == 100_000


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("source", [T.BF16, T.F16, T.Q8_0], ids=lambda kind: kind.name)
def test_sixteen_bits_are_those_that_are_asked_for(bases, tmp_path, source, kind):
    base = bases[source]
    merge(base, made_up(base), kind, tmp_path / "m.gguf")
    written = gguf_file.read(tmp_path / "m.gguf")
    assert {t.type for t in written.tensors if len(t.shape) == 2} == {T[kind]}
    assert written.metadata["general.file_type"] == {"F16": 1, "BF16": 32}[kind]
    weights = tensors(base.gguf)["blk.0.attn_q.weight"]
    sixteen = torch.float16 if kind == "F16" else torch.bfloat16
    assert np.array_equal(
        tensors(written)["blk.0.attn_q.weight"], torch.from_numpy(weights.copy()).to(sixteen).float().numpy()
    )
    assert types_bytes(base.gguf, planned_types(base, None, kind)) == pytest.approx(
        quantized_bytes(base.gguf, "F16"), rel=0.05
    )


@pytest.mark.parametrize("kind", ["source", "Q8_0", "Q4_0", "Q4_K_M", "F16", "BF16"])
def test_metadata_template_and_tokenizer_are_kept_byte_for_byte(tiny, tmp_path, kind):
    random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.05)
    base = base_of(tiny)
    source = base.gguf
    merge(base, Adapter.load(tmp_path / "adapter", base), kind, tmp_path / "p.gguf")
    before, after = gguf.GGUFReader(tiny.gguf), gguf.GGUFReader(tmp_path / "p.gguf")
    differing = {
        key
        for key in before.fields.keys() | after.fields.keys()
        if not key.startswith("GGUF.")
        and (key not in before.fields or before.fields[key].contents() != after.fields[key].contents())
    }
    same = {"general.file_type"} if kind in ("source", "F16") else set()
    quantized = {"general.quantization_version"} if kind.startswith("Q") else set()
    assert differing == ({"general.file_type"} | quantized) - same
    assert after.fields["tokenizer.chat_template"].contents() == TEMPLATE
    written = gguf_file.read(tmp_path / "p.gguf").values
    same_type = written | {"general.file_type": source.values["general.file_type"]}
    assert [*same_type.items()][: len(source.values)] == [*source.values.items()]
    assert (
        after.fields["general.file_type"].contents()
        == ({"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15, "F16": 1, "BF16": 32, "source": 1}[kind])
    )
    wanted = {"Q8_0": T.Q8_0, "Q4_0": T.Q4_0, "Q4_K_M": T.Q5_0, "BF16": T.BF16}.get(kind, T.F16)
    assert {t.tensor_type for t in after.tensors if t.name == UP} == {wanted}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "p.gguf"]


def test_quantized_sources_dequantize_exactly(bases, tmp_path):
    merge(bases[T.Q8_0], None, "F16", tmp_path / "f16.gguf")
    before, after = tensors(bases[T.Q8_0].gguf), tensors(gguf_file.read(tmp_path / "f16.gguf"))
    for name, weights in before.items():
        assert np.array_equal(weights.astype(np.float16), after[name].astype(np.float16))


@pytest.mark.parametrize("kind", [T.F16, T.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("wanted", ["source", "F16", "Q8_0", "Q4_0", "Q4_K_M", "Q2_K"])
def test_with_the_rounded_base_at_hand_the_file_is_the_same(bases, tmp_path, kind, wanted):
    base = bases[kind]
    adapter = made_up(base, importance=importance_of(base, (UP, K, "blk.0.attn_q.weight")))
    round_base(base, adapter, wanted, tmp_path / "base.gguf")
    rounded = gguf_file.read(tmp_path / "base.gguf")
    by = Rounded(rounded, adapter.importance)
    given = merge(base, adapter, wanted, tmp_path / "given.gguf", rounded=by)
    alone = merge(base, adapter, wanted, tmp_path / "alone.gguf")
    assert (tmp_path / "given.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    assert given == alone
    # A later round's importance is another one, and the base stays as the first round's made it.
    others = {name: importance[::-1].copy() for name, importance in adapter.importance.items()}
    assert merge(base, replace(adapter, importance=others), wanted, tmp_path / "later.gguf", rounded=by) == alone
    assert (tmp_path / "later.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    # Where nothing is learned, the two files have one content.
    before, after = raws(rounded), raws(gguf_file.read(tmp_path / "given.gguf"))
    assert {name for name in before if before[name] != after[name]} == {UP, K}


def test_the_importance_reaches_the_quantizer_of_base_and_merge(bases, tmp_path):
    base = bases[T.F16]
    named = (UP, "blk.0.attn_q.weight")
    for name, importance in (("with", importance_of(base, named)), ("without", {})):
        adapter = made_up(base, importance=importance)
        round_base(base, adapter, "Q4_0", tmp_path / f"base-{name}.gguf")
        merge(base, adapter, "Q4_0", tmp_path / f"merge-{name}.gguf")
    for what in ("base", "merge"):
        ours, plain = (raws(gguf_file.read(tmp_path / f"{what}-{name}.gguf")) for name in ("with", "without"))
        assert {name for name in ours if ours[name] != plain[name]} == set(named)


def test_the_types_of_the_source_may_be_those_of_another_file(bases, tmp_path):
    base = bases[T.BF16]
    requantize(bases[T.F16].gguf, "Q4_0", tmp_path / "users.gguf")
    users = gguf_file.read(tmp_path / "users.gguf")
    adapter = made_up(base)
    kept = merge(base, adapter, "source", tmp_path / "m.gguf", like=users)
    written = gguf_file.read(tmp_path / "m.gguf")
    assert [t.type for t in written.tensors] == [t.type for t in users.tensors]
    assert written.metadata["general.file_type"] == users.metadata["general.file_type"] == 2
    assert kept.share == pytest.approx(1, abs=0.15)
    # The weights are those of the base, not those of the file whose types it has.
    round_base(base, adapter, "source", tmp_path / "base.gguf", like=users)
    merge(base, None, "Q4_0", tmp_path / "q4.gguf")
    assert raws(gguf_file.read(tmp_path / "base.gguf")) == raws(gguf_file.read(tmp_path / "q4.gguf"))


def test_where_the_users_file_says_no_type_a_merged_one_says_none(bases, tmp_path):
    """That of the weights that it was made of would be another one; of the tensors llama.cpp guesses the right one."""
    base = bases[T.BF16]
    requantize(bases[T.F16].gguf, "Q4_0", tmp_path / "said.gguf")
    said = gguf_file.read(tmp_path / "said.gguf")
    silent = said.keeping(lambda key: key != "general.file_type")
    gguf_file.write(tmp_path / "users.gguf", silent, said.tensors, said.raw_blocks, {})
    users, adapter = gguf_file.read(tmp_path / "users.gguf"), made_up(base)
    merge(base, adapter, "source", tmp_path / "m.gguf", like=users)
    round_base(base, adapter, "source", tmp_path / "base.gguf", like=users)
    for name in ("m", "base"):
        written = gguf_file.read(tmp_path / f"{name}.gguf")
        assert [t.type for t in written.tensors] == [t.type for t in users.tensors]
        assert "general.file_type" not in written.metadata
        assert written.metadata["general.quantization_version"] == users.metadata["general.quantization_version"]
        llama_cpp.Llama(str(written.path), n_ctx=64, verbose=False).close()
    merge(base, adapter, "Q8_0", tmp_path / "q8.gguf", like=users)
    assert gguf_file.read(tmp_path / "q8.gguf").metadata["general.file_type"] == 7, "what was asked for is known"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_the_same_merge_twice_gives_the_same_bytes(tiny, tmp_path, kind):
    random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.01)
    base, told = base_of(tiny), []
    for name in ("first", "again"):
        merge(base, Adapter.load(tmp_path / "adapter", base), kind, tmp_path / name, told.append)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    types = planned_types(base, Adapter.load(tmp_path / "adapter", base), kind)
    assert sum(told) == 2 * types_bytes(base.gguf, types)


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    random_adapter(tiny.hf_checkpoint, tmp_path / "a", spread=0.05)
    base = base_of(tiny)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    stray = {k.replace("layers.0.mlp.up_proj", "layers.7.mlp.up_proj"): v for k, v in weights.items()}
    for changed, message in [(stray, "has no model.layers.7"), ({**weights, key: weights[key][:-1]}, "up_proj")]:
        save_file(changed, tmp_path / "a" / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            Adapter.load(tmp_path / "a", base)
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / BASE_FILE).write_text(json.dumps({"sha256": base.sha256}))
    assert len(Adapter.load(tmp_path / "a", base).factors) == 2 * 7
    (tmp_path / "a" / BASE_FILE).write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(UserError, match="was trained on another model"):
        Adapter.load(tmp_path / "a", base)


def test_an_adapter_comes_with_the_importance_beside_it(tiny, tmp_path):
    random_adapter(tiny.hf_checkpoint, tmp_path / "a", spread=0.05)
    base = base_of(tiny)
    assert Adapter.load(tmp_path / "a", base).importance == {}
    name = base.tensor_map.tensors[UP].name
    save_file({name: np.arange(64, dtype=np.float32), "tokens": np.array(2)}, tmp_path / "sums")
    write_imatrix(tmp_path / "sums", base.tensor_map, "pairs", tmp_path / "a" / IMATRIX_FILE)
    found = Adapter.load(tmp_path / "a", base).importance
    assert found.keys() == {UP}
    assert np.allclose(found[UP], np.arange(64, dtype=np.float32) / 2, atol=1e-4)


def test_an_adapter_reads_back_its_own_update(tmp_path):
    b, a = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.ones((2, 4), dtype=np.float32)
    start = "base_model.model.model.layers.0.mlp.up_proj"
    save_file({f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    factors, alpha, rank = read_factors(tmp_path)
    update = Adapter(factors, alpha, rank).update("model.layers.0.mlp.up_proj.weight", slice(1, 3))
    assert np.array_equal(update, (2 * b @ a)[1:3])


def test_smollm2_merged_f16_agrees_with_torch_on_real_responses(smollm2, smollm2_master, tmp_path):
    # Through a quantized source and permuted rows.
    base = Base(gguf_file.read(smollm2), smollm2_master)
    policy = random_adapter(smollm2_master, tmp_path / "adapter", spread=0.03, rank=8)
    merge(base, Adapter.load(tmp_path / "adapter", base), "F16", tmp_path / "p.gguf")
    questions = [json.loads(line)["prompt"] for line in QUERIES.read_text().splitlines()[:2]]
    with Vocabulary.open(smollm2) as vocabulary:
        prompts = [vocabulary.prompt(question) for question in questions]
    worst, change = 0.0, 0.0
    for prompt, (response, scores) in zip(prompts, sampled_and_scored(tmp_path / "p.gguf", prompts, 16), strict=True):
        expected = torch_scores(policy, prompt, response)
        worst = max(worst, np.abs(expected - scores).mean())
        with policy.disable_adapter():
            change += np.abs(torch_scores(policy, prompt, response) - expected).mean() / len(prompts)
    print(f"worst mean difference {worst:.5f} nats per token; the adapter changes {change:.3f}")
    assert worst < 0.01
    assert change > 0.05, "the adapter must matter for this to show anything"
    # The learner's own packed forward pass gives the same sums.
    inputs = trees([[(prompt, response), (prompt, response[:-1])]])
    with torch.no_grad():
        assert response_logps(policy, inputs)[0].item() == pytest.approx(expected.sum(), abs=0.01)


def test_a_few_tensors_of_a_real_model_are_merged_in_its_own_types_and_it_still_answers(
    smollm2, smollm2_master, tmp_path
):
    base = Base(gguf_file.read(smollm2), smollm2_master)
    names = (UP, "blk.3.ffn_down.weight", "blk.9.attn_q.weight")  # of several blocks of rows, and of few
    adapter = made_up(base, names, size=1e-4)
    kept = merge(base, adapter, "source", tmp_path / "p.gguf")
    merge(base, adapter, "source", tmp_path / "again.gguf")
    assert (tmp_path / "p.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    before, after = raws(base.gguf), raws(gguf_file.read(tmp_path / "p.gguf"))
    assert {name for name in before if before[name] != after[name]} == set(names)
    assert kept.share == pytest.approx(1, abs=0.15)
    llama = llama_cpp.Llama(str(tmp_path / "p.gguf"), n_ctx=256, verbose=False)
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    answer = llama.create_chat_completion(question, max_tokens=48, temperature=0)
    assert "4" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_where_somebody_had_an_importance_matrix_is_not_written(tiny, tmp_path):
    part = raw.parse(tiny.gguf, SIZES)
    for name, value in (("file", "/home/alice/imatrix.dat"), ("dataset", "C:\\alice\\text.txt"), ("entries", "7")):
        part.put(f"quantize.imatrix.{name}", raw.STRING, raw.text(value))
    (tmp_path / "named.gguf").write_bytes(part.encode())
    requantize(gguf_file.read(tmp_path / "named.gguf"), "Q8_0", tmp_path / "out.gguf")
    made = gguf_file.read(tmp_path / "out.gguf")
    assert b"alice" not in (tmp_path / "out.gguf").read_bytes()
    assert made.metadata["quantize.imatrix.entries"] == "7"
    assert made.array("tokenizer.ggml.tokens") == gguf_file.read(tiny.gguf).array("tokenizer.ggml.tokens")
