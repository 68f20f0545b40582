"""A run folder that another process made: what llama.cpp or transformers would open is checked first."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genius_lite.cli.arguments import named_model
from genius_lite.errors import UserError
from genius_lite.export.bundle import export
from genius_lite.recipe.reader import load
from genius_lite.report.page import write_report
from genius_lite.run import run
from genius_lite.weights.adapter import Adapter, read_factors
from genius_lite.weights.full_precision import read_config
from genius_lite.weights.importing import Base
from tests.faults import raw
from tests.faults.raw import U32
from tests.faults.regressions import CASES
from tests.faults.run_folders import sound_run
from tests.faults.sound import SIZES

END = ("summary.json", "best.json", "export", "round-2")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    sound_run(folder)
    return folder


@pytest.fixture
def copied(project, tmp_path) -> Callable[..., Path]:
    """A copy of the run, without some of its files."""

    def copy(*without: str) -> Path:
        shutil.copytree(project / "run", tmp_path / "run")
        for name in without:
            path = tmp_path / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return tmp_path / "run"

    return copy


def go_on(project: Path, folder: Path) -> None:
    run(load(project / "r.yaml", [f"out={folder}", "rounds=2"]))


def deadly(path: Path) -> None:
    """Put a model of the same tensors there, of which llama.cpp dies."""
    part = raw.parse(path, SIZES)
    part.put("llama.expert_count", U32, raw.number(U32, 8))
    path.write_bytes(part.encode())


def test_a_policy_of_which_llama_cpp_dies_is_a_line_wherever_it_is_opened(project, copied, tmp_path):
    folder = copied(*END, "round-1/report.json", "round-1/evaluation")
    deadly(folder / "round-1" / "policy.gguf")
    (folder / "round-1" / "report.json").write_bytes((project / "run/round-1/report.json").read_bytes())
    for use in (
        lambda: named_model(str(folder), 1),
        lambda: export(folder, 1, "ollama", [], tmp_path / "out"),
        lambda: export(folder, 1, "gguf", [], tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=r"policy\.gguf: broken GGUF: llama\.cpp dies of it"):
            use()
    assert not (tmp_path / "out").exists()
    html, _ = write_report(folder, tmp_path / "report")
    assert "hf-checkpoint" not in html.read_text()
    (folder / "round-1" / "report.json").unlink()
    with pytest.raises(UserError, match=r"policy\.gguf is not the file that this run made; delete it"):
        go_on(project, folder)


def test_a_report_does_without_a_model_that_llama_cpp_does_not_survive(copied, tmp_path):
    folder = copied("export", "round-2")
    part = raw.parse(folder / "round-1" / "policy.gguf", SIZES)
    CASES["llama.cpp asserts that no two tokens have one text"][1](part)
    (folder / "round-1" / "policy.gguf").write_bytes(part.encode())
    source = folder / "hf-checkpoint" / "source.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"path": str(tmp_path / "gone.gguf")}))
    html, _ = write_report(folder, tmp_path / "report")
    assert "or llama.cpp does not survive it: tokens have no text" in html.read_text()


@pytest.mark.parametrize(
    ("name", "without"), [("round-1/policy.gguf", ()), ("rounded/base.gguf", ("round-1/policy.gguf",))]
)
def test_a_file_of_another_model_is_a_line(project, copied, name, without):
    folder = copied(*END, "round-1/report.json", "round-1/evaluation", *without)
    part = raw.parse(folder / name, SIZES)
    part.tensors = part.tensors[:-1]
    part.place()
    (folder / name).write_bytes(part.encode())
    with pytest.raises(UserError, match=rf"{name} was not made of .* differs; delete it to have it made anew"):
        go_on(project, folder)


def test_a_file_of_the_same_shape_that_another_run_made_is_a_line(project, copied):
    """Rollouts of another model were sampled from it, which stayed when the right file was put back."""
    folder = copied(*END)
    file = folder / "round-1" / "policy.gguf"
    made = file.read_bytes()
    file.write_bytes(made[:-1] + bytes([made[-1] ^ 1]))
    with pytest.raises(UserError, match=r"policy\.gguf is not the file that this run made; delete it to have it made"):
        go_on(project, folder)
    file.write_bytes(made)
    go_on(project, folder)


@pytest.mark.parametrize(
    ("name", "without", "change", "told"),
    [
        ("round-1/evaluation/responses.jsonl", (), lambda text: text[: len(text) // 2], "has other responses than"),
        ("round-1/evaluation/responses.jsonl", (), lambda text: text + text, "has other responses than were asked for"),
        ("round-0/evaluation/responses.jsonl", (), lambda text: "", "has other responses than were asked for"),
        ("round-1/evaluation/signals.json", (), None, "has no signals; delete it to have it made anew"),
        ("round-1/pairs.jsonl", ("round-1/adapter",), lambda text: "", "is empty; delete it to have pairs made anew"),
        ("round-1/pairs.jsonl", ("round-1/adapter",), lambda text: text[9:], "delete the file to have it made anew"),
    ],
    ids=["cut", "twice", "none of the base", "signals", "no pair", "half a pair"],
)
def test_what_a_round_was_measured_by_or_learns_from_is_whole(project, copied, name, without, change, told):
    """Figures were told of the responses that were left, and a guard without signals saw nothing."""
    folder = copied(*END, "round-1/report.json", *without)
    file = folder / name
    if change:
        file.write_text(change(file.read_text()))
    else:
        file.unlink()
    with pytest.raises(UserError, match=told):
        go_on(project, folder)


def test_a_round_without_figures_of_its_training_is_a_line(project, copied):
    folder = copied(*END, "round-1/report.json", "round-1/evaluation", "round-1/adapter")
    (folder / "round-1" / "adapter").write_text("no folder")
    with pytest.raises(UserError, match=r"adapter has no figures of its training; delete .*round-1 to have it made"):
        go_on(project, folder)


def test_an_adapter_with_numbers_that_are_not_finite_is_a_line(project, copied):
    folder = copied(*END, "round-1/report.json", "round-1/evaluation", "round-1/policy.gguf")
    file = folder / "round-1" / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = min(weights)
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, file)
    with pytest.raises(UserError, match="has numbers that are not finite"):
        go_on(project, folder)


def test_an_adapter_for_run_time_is_made_anew_and_not_opened(project, copied):
    folder = copied(*END)
    file = folder / "round-1" / "adapter.gguf"
    sound = file.read_bytes()
    file.write_bytes(b"GGUF" + b"\xff" * 400)
    go_on(project, folder)
    assert file.read_bytes() == sound


@pytest.mark.parametrize(
    "asks",
    [
        {"attn_implementation": "evil/kernel"},
        {"attn_implementation": {"": "evil/kernel"}},
        {"attn_implementation": "evil/kernel", "x": math.nan},
        {"x": [1e31, {"attn_implementation": ["evil/kernel"]}]},
    ],
)
def test_a_config_that_asks_for_code_of_the_hub_is_a_line(copied, asks):
    """One with a number that no document of a run has was not looked at, nor was a part of a dictionary."""
    checkpoint = copied() / "hf-checkpoint"
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | asks))
    with pytest.raises(UserError, match=r"asks for code of the hub \(attn_implementation: evil/kernel\)"):
        read_config(checkpoint)


def test_a_config_of_a_stranger_is_looked_at_before_the_learner_loads_it(project, copied):
    folder = copied(*END, "round-1")
    (folder / "hf-checkpoint" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json cannot be read .*; put its maker's own in its place"):
        go_on(project, folder)


@pytest.mark.parametrize(
    ("name", "content", "to_format"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "peft"),
        ("tokenizer.json", "{}", "safetensors"),
        ("tokenizer_config.json", "[]", "peft"),
        ("config.json", "{", "safetensors"),
        ("config.json", '{"text_config": 3', "safetensors"),
    ],
)
def test_what_lies_beside_the_original_weights_and_is_damaged_is_a_line(copied, tmp_path, name, content, to_format):
    """Each was a traceback, after the training; a clone without Git LFS has such files."""
    folder = copied()
    original = folder / "hf-checkpoint" / "original"
    original.mkdir()
    (original / "tokenizer.json").write_text("{}")
    (original / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} .*; put (its|the) maker's own in its place"):
        export(folder, 1, to_format, [], tmp_path / "out")


def test_an_adapter_beside_the_weights_which_leads_to_another_model_is_a_line(project, copied, tmp_path):
    """transformers took the model that it names, from the hub if it is there."""
    folder = copied(*END, "round-1")
    (folder / "hf-checkpoint" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "elsewhere")})
    )
    with pytest.raises(UserError, match=r"adapter_config\.json lies beside the weights, and transformers would load"):
        go_on(project, folder)


@pytest.mark.parametrize(
    ("sums", "line"),
    [
        (np.ones((1, 3)), r"whose blk\.0\.attn_q\.weight has 64 columns"),
        (np.full((1, 64), np.inf), "has no importance"),
        (np.full((1, 64), -1.0), "has no importance"),
    ],
)
def test_importance_of_another_model_is_a_line(copied, sums, line):
    """With a shorter one llama.cpp read beyond its end."""
    folder = copied()
    (folder / "round-1" / "adapter" / "imatrix.gguf").unlink()
    writer = gguf.GGUFWriter(folder / "round-1" / "adapter" / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", sums.astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(UserError, match=line):
        Adapter.load(folder / "round-1" / "adapter", Base.of(folder / "hf-checkpoint"))


def test_a_rounded_base_without_its_importance_is_a_line(project, tmp_path):
    """Its rounds would keep 0.7 of what they learn in Q4_K, without a word."""
    out = tmp_path / "run"
    recipe = load(project / "r.yaml", [f"out={out}", "rounds=1", "quantize.type=Q8_0", "quantize.check=never"])
    run(recipe)
    (out / "rounded" / "imatrix.gguf").unlink()
    run(recipe)  # nothing is merged any more
    again = [f"round-1/{name}" for name in ("report.json", "evaluation", "policy.gguf", "quantized.json")]
    for name in (*END[:3], *again):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"imatrix\.gguf is gone, by which base\.gguf beside it was quantized: copy"):
        run(recipe)
    shutil.copyfile(out / "round-1" / "adapter" / "imatrix.gguf", out / "rounded" / "imatrix.gguf")
    run(recipe)
    assert (out / "round-1" / "policy.gguf").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"alpha_pattern": {".*": 64}},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"peft_type": "IA3"},
        {"target_modules": "(a+)+$"},
        {"modules_to_save": ["lm_head"]},
        {"lora_alpha": 1e29},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_adapter_that_peft_would_read_otherwise_than_it_is_merged_is_a_line(copied, changed):
    adapter = copied() / "round-1" / "adapter"
    file = adapter / "adapter_config.json"
    read_factors(adapter)
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(UserError, match=r"adapter_config\.json(: \w+ is .*, which no run makes| was made by another)"):
        read_factors(adapter)


def test_a_type_that_leads_out_of_the_export_is_a_line(copied, tmp_path):
    folder = copied()
    file = folder / "round-1" / "quantized.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"type": "../../../evil"}))
    with pytest.raises(UserError, match=r"quantized\.json was made by another version"):
        export(folder, 1, "gguf", [], tmp_path / "to" / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "to"}
    assert not [*tmp_path.glob("to/*")]
