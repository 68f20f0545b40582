"""Every export of a real (tiny) run, read by the programs that it is for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest
import torch

from genius_lite.errors import UserError
from genius_lite.export import FormatName
from genius_lite.export.bundle import FORMATS, RunRound, export
from genius_lite.export.tokenizer import write_tokenizer
from genius_lite.pipeline.job import prepare
from genius_lite.pipeline.stages import import_base
from genius_lite.progress import SILENT
from genius_lite.recipe import Foresight, Learner, Model, Queries, Recipe
from genius_lite.report.columns import SHORT
from genius_lite.report.page import escaped
from genius_lite.report.terminal import TerminalProgress
from genius_lite.run import run
from genius_lite.rundir.folder import open_folder
from genius_lite.weights import gguf_file
from tests.conftest import FORKED_HELPERS
from tests.support.engine import PROMPT
from tests.support.models import ANY_PAIRS, TEMPLATE, tiny_gguf
from tests.support.scoring import RESPONSE, scored

pytestmark = FORKED_HELPERS

SYSTEM = "Be brief.\nDon't guess."


@pytest.fixture(scope="module", params=["merge", "adapter"])
def finished(request, tmp_path_factory):
    """A run of two rounds, from full-precision weights beside a quantized GGUF."""
    from rich.console import Console

    folder = tmp_path_factory.mktemp("run")

    def says_its_type(writer: gguf.GGUFWriter) -> None:
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)

    kind = gguf.GGMLQuantizationType.Q8_0
    model = tiny_gguf(folder / "tiny.Q8_0.gguf", "llama", kind=kind, more=says_its_type)
    model.save_pretrained(folder / "full")
    write_tokenizer(gguf_file.read(folder / "tiny.Q8_0.gguf"), folder / "none", folder / "full")
    (folder / "q.txt").write_text("one\ntwo\nthree\n")
    recipe = Recipe(
        out=str(folder / "run"),
        model=Model(gguf=str(folder / "tiny.Q8_0.gguf"), weights=str(folder / "full")),
        queries=Queries(source=str(folder / "q.txt"), system=SYSTEM),
        policy=request.param,
        foresight=Foresight(candidates=2, steps=2, max_tokens=16, temperature=1.5),
        pairs=ANY_PAIRS,
        learner=Learner(rank=4, lora_alpha=8, lr=1e-2, batch_pairs=2, parity_limit=5),
    )
    summary = run(recipe, TerminalProgress(Console(quiet=True)))
    assert run(recipe, TerminalProgress(Console(quiet=True))) == summary
    return folder / "run", request.param, summary


def test_what_rounds_leave_is_what_the_recipe_says(finished):
    folder, mode, summary = finished
    assert [report.quantized.type for report in summary.rounds] == ["Q8_0", "Q8_0"]
    assert (folder / "round-1" / "adapter.gguf").exists() == (mode != "merge")
    assert not (folder / "round-2" / "adapter.gguf").exists(), "no round follows"
    made = [folder / "rounded" / "base.gguf", *(folder / f"round-{number}" / "policy.gguf" for number in (1, 2))]
    assert [RunRound.of(folder, number).gguf for number in (0, 1, 2)] == made
    assert RunRound.of(folder, None).number == 2
    with pytest.raises(UserError, match="round 3 is not finished"):
        RunRound.of(folder, 3)


@pytest.mark.parametrize("finished", ["adapter"], indirect=True)
def test_every_format_says_the_same(finished, tmp_path):
    folder, _, _ = finished
    export(folder, None, "gguf", ["F16", "Q4_0"], tmp_path / "g")
    assert sorted(p.name for p in (tmp_path / "g").iterdir()) == [
        "README.md", "SHA256SUMS", "tiny.genius-F16.gguf", "tiny.genius-Q4_0.gguf"
    ]  # fmt: skip
    expected = scored(tmp_path / "g" / "tiny.genius-F16.gguf")
    assert subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "g").returncode == 0

    export(folder, 2, "lora-gguf", [], tmp_path / "l")
    (lora,) = (tmp_path / "l").glob("*.gguf")
    base = RunRound.of(folder, 0).base.gguf.path  # full precision, as adapters are trained on it
    assert np.abs(scored(base, lora) - expected).mean() < 0.01
    assert np.abs(scored(base) - expected).mean() > 0.05, "the adapter must matter"

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(folder, 2, "safetensors", [], tmp_path / "s")
    export(folder, 2, "peft", [], tmp_path / "p")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "s", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "hf-checkpoint", dtype=torch.float32), tmp_path / "p"
    )
    assert json.loads((tmp_path / "s" / "config.json").read_text())["dtype"] == "float16"
    for model in (whole, adapted):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + RESPONSE])).logits[0].log_softmax(-1)
        found = logits[range(len(PROMPT) - 1, len(PROMPT) + len(RESPONSE) - 1), RESPONSE].numpy()
        assert np.abs(found - expected).mean() < 0.02
    for name in ("s", "p"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer("<|im_start|>12")["input_ids"] == [257, 49, 50]
        original = folder.parent / "full" / "tokenizer.json"
        assert (tmp_path / name / "tokenizer.json").read_bytes() == original.read_bytes()

    export(folder, 2, "ollama", [], tmp_path / "o")
    asked = f"-sys {shlex.quote(SYSTEM)}"
    assert (
        f"```sh\nllama-cli -m BASE.gguf --lora ./{lora.name} {asked}\n```" in (tmp_path / "l" / "README.md").read_text()
    )
    assert "```sh\nllama-cli -m ./tiny.genius-F16.gguf" in (tmp_path / "g" / "README.md").read_text()
    assert (
        f"{asked}\nlms import ./tiny.genius-Q8_0.gguf --copy    # LM Studio; without --copy it moves the file\n"
        "ollama create genius -f ./Modelfile && ollama run genius\n```"
    ) in (tmp_path / "o" / "README.md").read_text()
    text = (tmp_path / "o" / "Modelfile").read_text()
    assert "FROM ./tiny.genius-Q8_0.gguf" in text
    assert "TEMPLATE" in text
    assert f'SYSTEM """{SYSTEM}"""\n' in text, "what it was asked after in training"


def card_code(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


@pytest.mark.parametrize("finished", ["adapter"], indirect=True)
def test_the_lines_of_a_card_load_what_lies_beside_it(finished, tmp_path, monkeypatch, capsys):
    """Of a base that was a local file, too, once it is exported where the adapter looks for it."""
    folder, _, _ = finished
    export(folder, 2, "safetensors", [], tmp_path / "whole")
    export(folder, 2, "peft", [], tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert "--round 0 --format safetensors --to tiny\n" in (tmp_path / "adapter" / "README.md").read_text()
    export(folder, 0, "safetensors", [], tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    loaded = {}
    for name in ("whole", "adapter", "tiny"):
        values = {"FOLDER": name}
        exec(card_code(tmp_path / name), values)
        assert "What is 2 + 2?" in capsys.readouterr().out
        with torch.no_grad():
            loaded[name] = values["model"].float()(torch.tensor([PROMPT])).logits
    assert (loaded["whole"] - loaded["adapter"]).abs().max() < 0.02
    assert (loaded["whole"] - loaded["tiny"]).abs().max() > 0.2, "the adapter must matter"


def test_the_formats_are_those_that_the_command_line_names():
    assert [*FORMATS] == [*get_args(FormatName)]


@pytest.mark.parametrize("finished", ["adapter"], indirect=True)
@pytest.mark.parametrize("to_format", FORMATS)
def test_nothing_that_may_be_uploaded_has_a_path_of_the_user(finished, to_format, tmp_path):
    folder, _, _ = finished
    export(folder, 2, to_format, [], tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert str(folder.parent).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize("finished", ["merge"], indirect=True)
def test_the_card_tells_what_was_measured(finished, tmp_path):
    folder, _, summary = finished
    card = (folder / "export" / "README.md").read_text()
    for report in summary.rounds:
        assert f"| {report.round} | {' | '.join(escaped(column.cell(report)) for column in SHORT)} |\n" in card
        assert f"| Q8\\_0 | {100 * report.quantized.kept:.0f} % |\n" in card
    sums = (folder / "export" / "SHA256SUMS").read_text().split()
    assert sums[0] in card
    assert "this system message" in card and "\n> Be brief.\n> Don't guess.\n" in card
    (command,) = re.findall(r"^llama-cli .*?$(?=\nlms)", card, re.MULTILINE | re.DOTALL)
    assert shlex.split(command) == ["llama-cli", "-m", f"./{sums[1]}", "-sys", SYSTEM]
    assert json.loads(card.partition("```json")[2].partition("```")[0])["rounds"] == 2
    export(folder, 0, "gguf", [], tmp_path / "base")
    for arguments, message in [
        ((folder, 0, "peft", []), "has no adapter"),
        ((folder, 1, "peft", ["Q4_0"]), "--type is for gguf"),
        ((tmp_path, None, "gguf", []), "is no run folder"),
    ]:
        with pytest.raises(UserError, match=message):
            export(*arguments, tmp_path / "x")
    with pytest.raises(UserError, match="exists; name another"):
        export(folder, None, "gguf", [], tmp_path / "base")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


@pytest.mark.parametrize("finished", ["merge"], indirect=True)
def test_a_file_that_is_not_the_evaluated_one_any_more_is_not_exported(finished, tmp_path):
    folder, _, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    with (tmp_path / "run" / "round-1" / "policy.gguf").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match=r"round-1/policy\.gguf is not the file that was evaluated any more"):
        export(tmp_path / "run", 1, "gguf", [], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    export(tmp_path / "run", 1, "gguf", ["Q8_0"], tmp_path / "anew")
    assert (tmp_path / "anew" / "tiny.genius-Q8_0.gguf").exists()
    # As long as it is there, the file that was evaluated is what is exported in its type.
    assert export(folder, 1, "gguf", ["Q8_0"], tmp_path / "own") == []
    policy = folder / "round-1" / "policy.gguf"
    assert (tmp_path / "own" / "tiny.genius-Q8_0.gguf").read_bytes() == policy.read_bytes()


def test_a_base_model_of_several_files_becomes_one(tmp_path):
    """Copied under another name its first part would load nowhere."""
    tiny_gguf(tmp_path / "tiny.gguf", "llama")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    writer = gguf.GGUFWriter(None, "llama", split_max_tensors=8)
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(tmp_path / "split.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = min(tmp_path.glob("split-00001-of-*.gguf"))
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\n")
    job = prepare(
        Recipe(
            out=str(tmp_path / "run"), model=Model(gguf=str(first)), queries=Queries(source=str(tmp_path / "q.txt")),
            foresight=Foresight(max_tokens=16),
        )
    )  # fmt: skip
    with open_folder(tmp_path / "run", job.identity) as folder:
        import_base(job, folder, SILENT)
    export(tmp_path / "run", 0, "gguf", [], tmp_path / "out")
    (made,) = (tmp_path / "out").glob("*.gguf")
    whole = {tensor.name: tensor.data for tensor in gguf.GGUFReader(made).tensors}
    assert whole.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        assert np.array_equal(whole[tensor.name], tensor.data)
