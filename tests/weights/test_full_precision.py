"""Full-precision weights beside a quantized GGUF; models in several files."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from genius_lite.errors import UserError
from genius_lite.weights import gguf_file
from genius_lite.weights.adapter import Adapter
from genius_lite.weights.full_precision import headers, load_weights, read_config, write_full_precision
from genius_lite.weights.importing import Base, import_checkpoint, save_checkpoint
from genius_lite.weights.mapping import Identical, Rounded, match
from genius_lite.weights.merge import merge
from tests.support.adapters import random_adapter, torch_scores
from tests.support.models import tiny_gguf
from tests.support.scoring import scored

Q = gguf.GGMLQuantizationType


@pytest.fixture(params=["llama", "qwen2"])
def both(request, tmp_path):
    """A quantized GGUF and the safetensors that it was made from."""
    model = tiny_gguf(tmp_path / "q.gguf", request.param, kind=Q.Q4_0)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "full", max_shard_size="100KB")
    return gguf_file.read(tmp_path / "q.gguf"), tmp_path / "full", model


def written(quantized, folder, out):
    """The GGUF with a folder's weights, the model loaded from it, and where its tensors were found."""
    model = load_weights(folder)
    found = write_full_precision(quantized, model.state_dict(), folder, out, lambda n: None)
    return gguf_file.read(out), model, found


def test_the_full_precision_rows_stand_in_the_ggufs_order(both, tmp_path):
    quantized, full, model = both
    assert (full / "model.safetensors.index.json").exists()
    exact, learner, found = written(quantized, full, tmp_path / "full.gguf")
    assert exact.metadata == quantized.metadata | {"general.file_type": 32}
    for ours, theirs in zip(exact.tensors, quantized.tensors, strict=True):
        a, b = exact.dequantized(ours), quantized.dequantized(theirs)
        if len(ours.shape) == 2:
            assert ours.type == Q.BF16
            assert 0 < np.abs(a - b).max() < 0.2, "rounding, and nothing but rounding, must be between them"
        else:
            assert np.array_equal(a, b)
    # llama.cpp and torch agree far better than through the quantized file.
    save_checkpoint(exact, learner, found, tmp_path / "hf-checkpoint")
    policy = random_adapter(tmp_path / "hf-checkpoint", tmp_path / "adapter", spread=0.05)
    base = Base(exact, tmp_path / "hf-checkpoint")
    merge(base, Adapter.load(tmp_path / "adapter", base), "BF16", tmp_path / "p.gguf")
    prompt, response = [5, 6, 7, 8], [50, 61, 72, 83]
    from tests.support.engine import PROMPT
    from tests.support.scoring import RESPONSE

    assert np.abs(scored(tmp_path / "p.gguf") - torch_scores(policy, PROMPT, RESPONSE)).mean() < 0.05
    assert np.abs(torch_scores(model.float(), prompt, response)).mean() > 1


def test_each_matrix_is_written_in_its_own_16_bits(both, tmp_path):
    """bfloat16 has its range; what has more digits than it holds is float16."""
    from safetensors.torch import save_file

    quantized, full, model = both
    rng = torch.Generator().manual_seed(2)
    weights = {}
    for name, weight in model.float().state_dict().items():
        kind = next((k for part, k in (("up_proj", torch.float16), ("down_proj", torch.float32)) if part in name), None)
        finer = weight + 1e-3 * torch.randn(weight.shape, generator=rng) if kind else weight
        weights[name] = finer.to(kind or torch.bfloat16).contiguous()
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for folder, held in (("mixed", weights), ("half", {name: w.half() for name, w in weights.items()})):
        (tmp_path / folder).mkdir()
        save_file(held, tmp_path / folder / "model.safetensors", {"format": "pt"})
        (tmp_path / folder / "config.json").write_bytes((full / "config.json").read_bytes())
    mixed, half = (written(quantized, tmp_path / name, tmp_path / f"{name}.gguf")[0] for name in ("mixed", "half"))
    for tensor in mixed.tensors:
        if len(tensor.shape) == 2:
            sixteen = "ffn_up" in tensor.name or "ffn_down" in tensor.name
            assert tensor.type == (Q.F16 if sixteen else Q.BF16), tensor.name
    assert {t.type for t in half.tensors if len(t.shape) == 2} == {Q.F16}
    assert (mixed.metadata["general.file_type"], half.metadata["general.file_type"]) == (32, 1)
    by_name = {t.name: mixed.dequantized(t) for t in mixed.tensors}
    for layer in range(2):
        for ours, theirs in (("ffn_up", "up_proj"), ("ffn_down", "down_proj"), ("ffn_gate", "gate_proj")):
            expected = weights[f"model.layers.{layer}.mlp.{theirs}.weight"]
            expected = (expected.half() if ours == "ffn_down" else expected).float().numpy()
            assert np.array_equal(by_name[f"blk.{layer}.{ours}.weight"], expected)


def test_weights_of_another_model_are_refused(both, tmp_path):
    quantized, _full, model = both
    for name, parameter in model.named_parameters():
        if name.endswith("layers.1.mlp.up_proj.weight"):
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"the rows of model\.layers\.1\.mlp\.up_proj"):
        written(quantized, tmp_path / "other", tmp_path / "x.gguf")


def scaled(model):
    """As the makers of Falcon-H1 have a factor beside some matrices, which converters multiply into them."""
    model.model.layers[1].mlp.up_proj.weight.data *= 4


def finetuned(model):
    """A vector is all that tells another training of the same model, where matrices hide it in their rounding."""
    model.model.layers[1].input_layernorm.weight.data *= 1 + 0.03 * torch.randn(64)


def deeper(model):
    model.model.layers.append(copy.deepcopy(model.model.layers[1]))
    model.config.num_hidden_layers = 3
    if hasattr(model.config, "layer_types"):
        model.config.layer_types *= 2
        model.config.layer_types.pop()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (scaled, r"the rows of model\.layers\.1\.mlp\.up_proj\.weight"),
        (finetuned, r"model\.layers\.1\.input_layernorm\.weight is not `blk\.1\.attn_norm\.weight`; are they the same"),
        (deeper, r"model\.layers\.2\.[a-z_.]+ would be `blk\.2\.[a-z_]+\.weight`, which is not there"),
    ],
)
def test_what_only_rounding_would_hide_is_refused(both, tmp_path, changed, message):
    quantized, _full, model = both
    changed(model)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        written(quantized, tmp_path / "other", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_head_that_the_gguf_lacks_is_refused(tmp_path):
    model = tiny_gguf(tmp_path / "q.gguf", "llama", kind=Q.Q4_0)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path / "full")
    with pytest.raises(UserError, match=r"lm_head\.weight would be `output\.weight`, which is not there"):
        written(gguf_file.read(tmp_path / "q.gguf"), tmp_path / "full", tmp_path / "x.gguf")


def change(config: dict, key: str, value) -> dict:
    return {k: v for k, v in config.items() if k != key} if value is None else config | {key: value}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "unheard-of", "transformers cannot read its config.json: .*unheard-of"),
        ("model_type", None, "transformers cannot read its config.json"),
        ("model_type", "vit", "transformers has no causal language model of type `vit`"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "its weights are quantized"),
        ("intermediate_size", 100_000, r"its config.json describes a model of \d+ weights, and \d+ are there"),
        ("hidden_size", "many", "transformers cannot read its config.json"),
        ("num_attention_heads", 0, "transformers cannot read its config.json"),
        ("pad_token_id", 10**6, "transformers cannot read its config.json"),
        ("hidden_act", "unheard-of", "transformers cannot read its config.json: .*unheard-of"),
    ],
)
def test_weights_that_cannot_be_taken_are_refused_before_they_are_loaded(both, tmp_path, key, value, message):
    _quantized, full, _model = both
    config = json.loads((full / "config.json").read_text())
    (full / "config.json").write_text(json.dumps(change(config, key, value)))
    with pytest.raises(UserError, match=message) as e:
        read_config(full)
    assert "\n" not in str(e.value)


def test_a_part_and_turned_matrices_are_found(tmp_path):
    """Fused rows one behind the other and in turns, stacks that stand the other way, and columns in another order."""
    rng = torch.Generator().manual_seed(5)
    stack, fused = torch.randn(3, 64, 48, generator=rng), torch.randn(96, 64, generator=rng)
    order = torch.randperm(64, generator=rng)
    weights = {"a": fused, "b": stack, "c": torch.randn(32, 64, generator=rng)}
    ours = {
        "gate": fused[:48],
        "up": fused[48:],
        "even": stack.mT[:, ::2],
        "odd": stack.mT[:, 1::2],
        "out": weights["c"][:, order],
    }
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    for name, tensor in ours.items():
        writer.add_tensor(f"blk.0.{name}.weight", tensor.half().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = gguf_file.read(tmp_path / "m.gguf")
    for like, held in ((Rounded(), weights), (Identical(), {name: w.half() for name, w in weights.items()})):
        found = match(source, held, like, tmp_path)
        assert {t.removeprefix("blk.0.").removesuffix(".weight"): p.name for t, p in found.tensors.items()} == {
            "gate": "a", "up": "a", "even": "b", "odd": "b", "out": "c",
        }  # fmt: skip
        for tensor in source.tensors:
            taken = found.take(tensor.name, held[found.tensors[tensor.name].name])
            assert np.array_equal(source.dequantized(tensor), taken.half().float().numpy())


def split(source: gguf_file.GGUF, folder, count: int) -> list:
    """Write the model in `count` files, by gguf-py: all metadata stand in the first."""
    size = -(-len(source.tensors) // count)
    writer = gguf.GGUFWriter(folder / "m.gguf", source.architecture, split_max_tensors=size)
    for field in gguf.GGUFReader(source.path).fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    for t in source.tensors:
        writer.add_tensor(t.name, np.asarray(source.raw(t)).reshape(*t.shape[:-1], -1), raw_dtype=t.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


def test_a_model_in_three_files_is_read_as_one(tiny, tmp_path):
    source = gguf_file.read(tiny.gguf)
    paths = split(source, tmp_path, 3)
    assert len(paths) == 3
    for path in paths:
        sharded = gguf_file.read(path)
        assert sharded.files == paths
        assert not any(key.startswith("split.") for key in sharded.metadata)
        assert sharded.metadata == source.metadata
        assert [replace(t, offset=0, path=tiny.gguf) for t in sharded.tensors] == [
            replace(t, offset=0, path=tiny.gguf) for t in source.tensors
        ]
    import_checkpoint(sharded, tmp_path / "hf-checkpoint", lambda n: None)
    merge(Base(sharded, tmp_path / "hf-checkpoint"), None, "F16", tmp_path / "joined.gguf")
    assert np.allclose(scored(tmp_path / "joined.gguf"), scored(tiny.gguf), atol=1e-5)
    assert np.allclose(scored(paths[0]), scored(tiny.gguf), atol=1e-5), "llama.cpp must see shards in these files too"
    paths[1].unlink()
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf is not beside it"):
        gguf_file.read(paths[0])


def test_names_in_an_index_stay_beside_it(tmp_path):
    from safetensors.torch import save_file

    matrix = {"a.weight": torch.ones(2, 3)}
    (tmp_path / "full").mkdir()
    save_file(matrix, tmp_path / "outside.safetensors")
    index = tmp_path / "full" / "model.safetensors.index.json"
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", "."):
        index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
        with pytest.raises(UserError, match=r"the index names .*, which is not there"):
            headers(tmp_path / "full")
    save_file(matrix, tmp_path / "full" / "inside.safetensors")
    index.write_text(json.dumps({"weight_map": {"a.weight": "../inside.safetensors"}}))
    with pytest.raises(UserError, match=r"the index names .*, which is not there"):
        headers(tmp_path / "full")
    index.write_text(json.dumps({"weight_map": {"a.weight": "inside.safetensors"}}))
    assert headers(tmp_path / "full") == {"a.weight": ("F32", [2, 3])}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", b"{", "no index of safetensors"),
        ("model.safetensors.index.json", b"{}", "no index of safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": {"a.weight": 3}}', "no index of safetensors"),
        ("model.safetensors.index.json", b'{"weight_map":' + b"[" * 100_000, "no index of safetensors"),
        ("model.safetensors", b"", "no safetensors file, or a broken one"),
        ("model.safetensors", b"\xff" * 100, "no safetensors file, or a broken one"),
        ("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}", "no safetensors file, or a broken one"),
    ],
)
def test_broken_safetensors_are_one_line(tmp_path, name, content, message):
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2, 3)}, tmp_path / "sound")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as e:
        headers(tmp_path)
    assert "\n" not in str(e.value)
