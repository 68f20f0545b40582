"""Exports for transformers, loaded as their cards say: from the hub, and in a type that holds the activations."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from genius_lite.errors import UserError
from genius_lite.export import transformers as transformers_module
from genius_lite.export.transformers import computing_type, python_lines, write_peft, write_safetensors
from genius_lite.rundir.folder import SOURCE
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import Base
from genius_lite.weights.source import ORIGINAL
from tests.support.adapters import random_adapter
from tests.support.engine import PROMPT
from tests.support.models import TEMPLATE, VOCABULARY
from tests.support.vocabularies import write_bytes

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def based(gguf: Path, hf_checkpoint: Path, origin: str = "x.gguf") -> Base:
    """A base that the recipe found at `origin`."""
    (hf_checkpoint / SOURCE).write_text(json.dumps({"path": str(gguf), "sha256": "0" * 64, "origin": origin}))
    return Base(gguf_file.read(gguf), hf_checkpoint)


def short(lines: str) -> str:
    """A card's lines, with a response that takes no seconds."""
    assert "max_new_tokens=200" in lines
    return lines.replace("max_new_tokens=200", "max_new_tokens=4")


@pytest.fixture
def overflowing(tmp_path) -> SimpleNamespace:
    """A tiny Gemma 3 in float16, whose activations leave that type's range, as those of the real ones do."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(7)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = Gemma3TextConfig(vocab_size=VOCABULARY, num_hidden_layers=2, sliding_window=32, **shape)
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_feedforward_layernorm.weight.fill_(4e4)
    copy.deepcopy(model).half().save_pretrained(tmp_path / "hf-checkpoint")
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    base = based(write_bytes(tmp_path / "x.gguf", "gemma3", TEMPLATE), tmp_path / "hf-checkpoint")
    return SimpleNamespace(base=base, model=model)


def test_gemma_3_answers_when_its_cards_lines_load_it(overflowing, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    base, prompt = overflowing.base, torch.tensor([PROMPT])
    (tmp_path / "out").mkdir()
    (note,) = write_safetensors(base, None, tmp_path / "out")
    assert "stored in 16 bits and loaded as float32" in note
    values: dict[str, Any] = {"FOLDER": str(tmp_path / "out")}
    exec(short(python_lines(base, False, None, {})), values)
    assert "What is 2 + 2?" in capsys.readouterr().out
    with torch.no_grad():
        found, expected = (model(prompt).logits for model in (values["model"], overflowing.model))
        half = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float16")(prompt).logits
    assert torch.equal(found, expected)
    assert not half.isfinite().all(), "as the export's own line gave it when config.json said float16"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [256, 258], "every token at which llama.cpp ends, not only the EOS of the file"


@pytest.mark.parametrize(
    ("architecture", "original", "expected"),
    [
        ("llama", None, "float16"),
        ("qwen2", {"torch_dtype": "bfloat16"}, "float16"),
        ("gemma2", None, "float32"),
        ("gemma3n", {"dtype": "bfloat16"}, "float32"),
        ("granite", {"dtype": "float32"}, "float32"),
        ("granite", {"dtype": "float16"}, "float16"),
        ("gemma4", {"text_config": {"dtype": "float16"}}, "float16"),
        ("gemma4", {"text_config": {}}, "float32"),
        ("some-new-one", None, "float32"),
    ],
)
def test_float16_is_for_families_that_are_known_to_fit(architecture, original, expected, tmp_path):
    base = based(write_bytes(tmp_path / "x.gguf", architecture, TEMPLATE), tmp_path)
    if original is not None:
        (tmp_path / ORIGINAL).mkdir()
        (tmp_path / ORIGINAL / "config.json").write_text(json.dumps(original))
    assert computing_type(base) == expected


def test_the_lines_ask_in_parts_and_stop_as_the_run_did(tmp_path):
    parts = "{% for p in messages[0].content %}{{ p.text }}{% endfor %}"
    for template, asked in ((TEMPLATE, "'content': 'What"), (parts, "'content': [{'type': 'text', 'text': 'What")):
        base = based(write_bytes(tmp_path / "x.gguf", "llama", template), tmp_path)
        assert asked in python_lines(base, False, None, {})
        assert "eos_token_id=[256, 258]" in python_lines(base, True, None, {})


def test_a_gguf_with_an_empty_template_is_asked_without_one(tmp_path):
    base = based(write_bytes(tmp_path / "x.gguf", "llama", ""), tmp_path)
    assert "apply_chat_template" not in python_lines(base, False, None, {})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6, "rope_type": "default"},
        {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
        {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    ],
)
def test_rotary_frequencies_stand_where_transformers_4_looks_too(tiny, tmp_path, rope):
    """It would take a base of 10,000 without a word: another model."""
    checkpoint = tmp_path / "hf-checkpoint"
    shutil.copytree(tiny.hf_checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    (tmp_path / "out").mkdir()
    write_safetensors(based(tiny.gguf, checkpoint), None, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert written.get("rope_scaling") == (scaling if rope["rope_type"] == "linear" else None)
    assert written.get("partial_rotary_factor") == rope.get("partial_rotary_factor")
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == rope


def test_a_long_rope_stays_as_transformers_5_reads_it():
    """Transformers 4 takes three of its fields alone, and 5 would take these three in place of all."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0], "long_factor": [2.0]}
    assert transformers_module._as_in_transformers_4(rope) == {"rope_theta": 1e4}


@pytest.mark.parametrize(
    ("made", "written"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "do_sample": True}),
        ({"do_sample": False, "temperature": 1.0}, {"do_sample": False, "temperature": 1.0}),
        ({"temperature": 1.0}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": False}),
    ],
)
def test_a_makers_temperature_is_written_where_it_can_be(tiny, tmp_path, made, written):
    """transformers reads one without `do_sample`, and refuses to save it once anything else in it is changed."""
    checkpoint = tmp_path / "hf-checkpoint"
    shutil.copytree(tiny.hf_checkpoint, checkpoint)
    (checkpoint / "generation_config.json").write_text(json.dumps(made))
    (tmp_path / "out").mkdir()
    write_safetensors(based(tiny.gguf, checkpoint), None, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: found.get(name) for name in ("temperature", "do_sample")} == {
        "temperature": None, "do_sample": None, **written
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_update_survives_in_16_bits(dtype, tiny, tmp_path):
    """Whatever the checkpoint is: bfloat16 would round half of it off; what float16 cannot hold goes into float32."""
    checkpoint = tmp_path / "hf-checkpoint"
    shutil.copytree(tiny.hf_checkpoint, checkpoint)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    large = "model.layers.1.mlp.up_proj.weight"
    weights[large] = 2.0**17 * torch.ones_like(weights[large]) if dtype != torch.float16 else weights[large]
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, checkpoint / "model.safetensors")
    random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=1e-3)
    (tmp_path / "out").mkdir()
    write_safetensors(based(tiny.gguf, checkpoint), tmp_path / "adapter", tmp_path / "out")
    found, adapter = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
    )
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted, before = 2 * b @ a, weights[f"{name}.weight"].float()

    def error(merged: torch.Tensor) -> float:
        return float((merged.float() - before - wanted).norm() / wanted.norm())

    assert found[f"{name}.weight"].dtype == torch.float16
    assert error(found[f"{name}.weight"]) < 0.2
    assert error((before + wanted).bfloat16()) > 0.5, "half as much of the rounding as of the update"
    if dtype != torch.float16:
        assert found[large].dtype == torch.float32 and found[large].isfinite().all()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"[]", b'{"r": 1'])
def test_a_damaged_adapter_is_one_line(tiny, tmp_path, name, content):
    random_adapter(tiny.hf_checkpoint, tmp_path / "adapter", spread=0.1)
    file, out = tmp_path / "adapter" / name, tmp_path / "out"
    file.unlink() if content is None else file.write_bytes(content)
    out.mkdir()
    checkpoint = shutil.copytree(tiny.hf_checkpoint, tmp_path / "hf-checkpoint")
    with pytest.raises(UserError, match="adapter"):
        write_peft(based(tiny.gguf, checkpoint, ""), tmp_path / "adapter", out)


def test_an_adapter_finds_its_base_on_the_hub(tinies, tmp_path):
    """Full-precision weights at their revision, or a GGUF; by the card's lines, with nothing of the run but that."""
    code, expected = ["import torch, safetensors.torch"], dict[Path, torch.Tensor]()
    for architecture in ("llama", "qwen2"):
        tiny, folder = tinies(architecture), tmp_path / architecture
        policy = random_adapter(tiny.hf_checkpoint, folder / "adapter", spread=0.1)
        with torch.no_grad():
            logits = policy(torch.tensor([PROMPT])).logits
        full, quantized = (tmp_path / "hub" / f"models--owner--{architecture}-{kind}" for kind in ("full", "quantized"))
        tiny.model.half().float().save_pretrained(full / "snapshots" / COMMIT)
        (quantized / "snapshots" / COMMIT / "sub").mkdir(parents=True)
        shutil.copyfile(tiny.gguf, quantized / "snapshots" / COMMIT / "sub" / "tiny.gguf")
        for repository, name in ((full, "v1"), (quantized, "main")):
            (repository / "refs").mkdir()
            (repository / "refs" / name).write_text(COMMIT)
        for kind, revision, origin in (("full", "v1", "@v1"), ("quantized", None, "/sub/tiny.gguf")):
            checkpoint, out = folder / f"run-{kind}", folder / f"out-{kind}"
            shutil.copytree(tiny.hf_checkpoint, checkpoint)
            out.mkdir()
            base = based(tiny.gguf, checkpoint, f"hf:owner/{architecture}-{kind}{origin}")
            write_peft(base, folder / "adapter", out)
            config = json.loads((out / "adapter_config.json").read_text())
            named = (config["base_model_name_or_path"], config["revision"])
            assert named == (f"owner/{architecture}-{kind}", revision)
            code += [f"FOLDER = {str(out)!r}", short(python_lines(base, True, None, {}))]
            code += [f"with torch.no_grad(): logits = model.float()(torch.tensor([{PROMPT}])).logits"]
            code += ["safetensors.torch.save_file({'logits': logits}, FOLDER + '/logits')"]
            expected[out / "logits"] = logits
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for file, logits in expected.items():
        assert (load_file(file)["logits"] - logits).abs().max() < 0.05
