"""`genius-lite export` beyond a folder: the hub (a stand-in), Ollama (a stand-in), and what a card has measured."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from genius_lite.export.bundle import FORMATS, RunRound
from genius_lite.export.card import eval_results, model_card
from genius_lite.recipe import Loss
from genius_lite.results.evaluation import Interval, TaskResult
from tests.conftest import FORKED_HELPERS
from tests.support.cli import RECIPE, genius
from tests.support.hub import TOKEN, Hub

pytestmark = FORKED_HELPERS

TASKS = """
evaluate:
  samples: 2
  tasks: [{source: t.jsonl, check: exact, use: report}, {source: u.jsonl, check: exact}]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A finished run of one round, with problems that report, and others that chose too."""
    from tests.support.models import tiny_gguf

    folder = tmp_path_factory.mktemp("giving")
    tiny_gguf(folder / "tiny.gguf", "llama")
    (folder / "q.txt").write_text("one\ntwo\nthree\n")
    for name in ("t", "u"):
        problems = ['{"prompt": "one", "answer": "one"}\n', '{"prompt": "two", "answer": "two"}\n']
        (folder / f"{name}.jsonl").write_text("".join(problems))
    (folder / "r.yaml").write_text(RECIPE.replace("rounds: 2", "rounds: 1") + TASKS)
    done = genius("run", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def environment(hub: str, token: str = TOKEN) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/proc/hf"}


def pushed(hub: str, *arguments: object, cwd: Path, token: str = TOKEN):
    """Run `export` with a hub of its own: huggingface_hub may have been imported with another one."""
    before = f"import huggingface_hub.constants as c; c.ENDPOINT = {hub!r}; c.HF_HUB_DISABLE_XET = True"
    return genius("export", "runs/r", *arguments, cwd=cwd, env=environment(hub, token), before=before)


def test_a_run_goes_to_the_hub_from_a_process_of_its_own(project):
    with Hub().listening() as hub:
        done = subprocess.run(
            [sys.executable, "-m", "genius_lite", "export", "runs/r", "--push", "hf:anna/tiny"],
            cwd=project, env=environment(hub.url), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = hub.repositories["anna/tiny"]
    assert f"pushed: {hub.url}/anna/tiny/commit/{made.sha()}" in done.stdout
    assert made.private
    assert set(made.files) == {".gitattributes", "README.md", "SHA256SUMS", "tiny.genius-F16.gguf"}
    assert made.files["tiny.genius-F16.gguf"] == next((project / "runs/r/export").glob("*.gguf")).read_bytes()


@pytest.mark.parametrize("to_format", FORMATS)
def test_a_dry_run_lists_what_would_go_in_every_format(project, tmp_path, to_format):
    kept = tmp_path / to_format
    with Hub().listening() as hub:
        done = pushed(hub.url, "--format", to_format, "--push", "hf:anna/tiny", "--dry-run", "--to", kept, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "hf:anna/tiny: not there, as far as the token sees; it would be made, private" in done.stdout
    sizes = {path.name: path.stat().st_size for path in kept.iterdir()}
    for name, size in sizes.items():
        assert f"  {name}  {size:,} bytes\n" in done.stdout
    assert f"{len(sizes)} files, {sum(sizes.values()):,} bytes; nothing private was found" in done.stdout
    assert hub.repositories == {}
    assert {asked.split()[0] for asked in hub.asked} == {"GET"}


def test_a_dry_run_needs_no_hub_and_no_token_and_says_what_is_there(project):
    done = pushed("http://127.0.0.1:9", "--push", "hf:anna/tiny", "--dry-run", cwd=project, token="")
    assert done.returncode == 0, done.stderr
    assert "whether it is there is not known: the hub cannot be reached" in done.stdout
    assert re.search(r"  tiny\.genius-F16\.gguf  [\d,]+ bytes\n", done.stdout)
    with Hub().listening() as hub:
        assert pushed(hub.url, "--push", "hf:anna/tiny", cwd=project).returncode == 0
        hub.repositories["anna/tiny"].files["old.gguf"] = b"old"
        done = pushed(hub.url, "--push", "hf:anna/tiny", "--dry-run", "--type", "F16,Q8_0", cwd=project)
    assert "hf:anna/tiny: there already, private" in done.stdout
    assert re.search(r"README\.md  [\d,]+ bytes  replaces another one\n", done.stdout)
    assert re.search(r"tiny\.genius-F16\.gguf  [\d,]+ bytes  there already\n", done.stdout)
    assert "what else is there stays: old.gguf" in done.stdout
    assert len(hub.repositories["anna/tiny"].commits) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say where it goes: --to FOLDER, --push hf:OWNER/REPO, or --create NAME"),
        (("--to", "x", "--public"), "--public and --dry-run are for --push"),
        (("--push", "tiny"), "a repository is written hf:OWNER/REPO"),
        (("--to", "x", "--create", "tiny"), "--create is for --format ollama"),
        (("--to", "x", "--format", "ollama", "--create", "-x"), "is called NAME or NAME:TAG"),
        (("--to", "x", "--format", "ollama", "--create", "a:b", "--type", "F16,Q8_0"), "each --type becomes a tag"),
        (("--push", "hf:anna/tiny"), "the hub cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(project, arguments, said):
    refused = pushed("http://127.0.0.1:9", *arguments, cwd=project)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert said in refused.stderr
    assert not (project / "x").exists()


OLLAMA = """#!/bin/sh
echo "$PWD $*" >> "$(dirname "$0")/asked"
{end}
"""


def ollama(folder: Path, end: str) -> dict[str, str]:
    """Put a program of that name on the PATH."""
    program = folder / "ollama"
    program.write_text(OLLAMA.format(end=end))
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_ollama_takes_an_export_in(project, tmp_path):
    env = ollama(tmp_path, "grep -q FROM \"$4\" && printf '\\033[?25lgathering model components\\r' >&2")
    to = tmp_path / "out"
    arguments = ("export", "runs/r", "--format", "ollama", "--create", "tiny")
    done = genius(*arguments, "--to", to, "--type", "F16,Q8_0", cwd=project, env=env)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"{project} create tiny:{k.lower()} -f {to}/Modelfile.{k}" for k in ("F16", "Q8_0")]
    assert "in Ollama: ollama run tiny:f16\nin Ollama: ollama run tiny:q8_0\n" in done.stdout
    assert f"\nollama create tiny:f16 -f {to}/Modelfile.F16 && ollama run tiny:f16\n" in done.stdout
    card = (to / "README.md").read_text()
    assert "\nollama create tiny:f16 -f ./Modelfile.F16 && ollama run tiny:f16\n```" in card
    done = genius(*arguments, "--to", tmp_path / "one", cwd=project, env=env)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "one" / "README.md").read_text()
    assert "\nollama create tiny -f ./Modelfile && ollama run tiny\n```" in card
    done = genius(*arguments, cwd=project, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines()[-1].startswith(f"{project} create tiny -f ")


def test_ollamas_own_words_are_told_where_it_fails(project, tmp_path):
    env = ollama(tmp_path, "printf '\\033[?25lwait\\rError: could not connect to ollama app\\n\\033[?25h' >&2; exit 1")
    to = tmp_path / "out"
    done = genius("export", "runs/r", "--format", "ollama", "--create", "tiny", "--to", to, cwd=project, env=env)
    assert done.returncode == 2
    told = f"error: ollama create tiny -f {to}/Modelfile: Error: could not connect to ollama app; {to} is written\n"
    assert done.stderr == told


def test_without_ollama_the_command_to_type_is_told(project, tmp_path):
    env, to = {**os.environ, "PATH": str(tmp_path)}, tmp_path / "out"
    arguments = ("export", "runs/r", "--format", "ollama", "--create", "tiny")
    done = genius(*arguments, "--to", to, cwd=project, env=env)
    assert done.returncode == 2
    assert f"type: ollama create tiny -f {to}/Modelfile; {to} is written\n" in done.stderr
    assert (to / "Modelfile").exists()
    done = genius(*arguments, cwd=project, env=env)
    assert done.returncode == 2
    assert "write a folder with --to, and where it is, type: ollama create tiny -f FOLDER/Modelfile\n" in done.stderr


def test_an_export_that_holds_nothing_learned_says_so(project, tmp_path):
    run = shutil.copytree(project / "runs" / "r", tmp_path / "r")
    (run / "best.json").write_text('{"round": 0, "stopped": null}')
    said = [
        genius("export", run, "--to", tmp_path / n, *more, cwd=project).stderr
        for n, more in (("a", ()), ("b", ("--round", 0)))
    ]
    assert f"the best round of {run} is the base model itself; nothing that was learned is in it" in said[0]
    assert "the best round" not in said[1], "that was asked for"


def test_the_hub_reads_what_was_measured(project):
    card = ModelCard.load(project / "runs/r/export/README.md")
    assert card.data.license is None
    assert {result.dataset_name for result in card.data.eval_results} == {"t"}, "u chose the round too"
    written = yaml.safe_load((project / "runs/r/export/README.md").read_text().split("---\n")[1])
    name, results = model_index_to_eval_results(written["model-index"])
    assert name == "tiny, self-trained"
    assert [result.metric_type for result in results] == ["accuracy", "accuracy_gain"] * 2
    assert all(result.metric_args["low"] <= result.metric_value <= result.metric_args["high"] for result in results)


def measured(**more) -> TaskResult:
    right, gained = Interval(0.1911, 0.1702, 0.2131), Interval(0.0713, 0.0131, 0.1299)
    return TaskResult(
        "hf:openai/gsm8k", 500, 4, 0.1, 80.0, None, right, right, sampled_gain=gained, **{"chosen_on": False, **more}
    )


def test_figures_are_in_percent_with_their_intervals():
    accuracy, gained = eval_results([measured()])
    assert (accuracy.dataset_type, accuracy.dataset_name) == ("openai/gsm8k", "hf:openai/gsm8k")
    assert accuracy.metric_value == 19.1
    assert accuracy.metric_name == "accuracy in %, sampled at temperature 1, 95 % interval [17.0, 21.3]"
    assert accuracy.metric_args == {"low": 17.0, "high": 21.3, "problems": 500, "samples": 4}
    assert (gained.metric_type, gained.metric_value) == ("accuracy_gain", 7.1)
    assert gained.metric_name.endswith("points, sampled at temperature 1, 95 % interval [+1.3, +13.0]")
    assert eval_results([measured(chosen_on=True)]) == []
    assert eval_results([]) == []
    assert eval_results([measured()], "x")[0].metric_name.endswith(" [17.0, 21.3], of x")


def test_a_card_without_measurements_has_no_index(project, tmp_path):
    done = genius("export", "runs/r", "--round", 0, "--to", tmp_path / "base", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "model-index" not in (tmp_path / "base" / "README.md").read_text()


def test_a_card_of_another_file_than_the_measured_one_says_so(project, tmp_path):
    own = (project / "runs/r/export/README.md").read_text()
    assert "not what is here" not in own
    for name, *more in (("type", "--type", "Q8_0"), ("lora", "--format", "lora-gguf")):
        done = genius("export", "runs/r", *more, "--to", tmp_path / name, cwd=project)
        assert done.returncode == 0, done.stderr
        card = (tmp_path / name / "README.md").read_text()
        kind = re.search(r"Measured was (the run's own \w+ file), not what is here\.", card)
        assert kind, card
        results = ModelCard(card).data.eval_results
        assert results and all(result.metric_name.endswith(f", of {kind[1]}") for result in results)


@pytest.mark.parametrize(
    ("learner", "said"),
    [
        ({"loss": "aco"}, "learned with advantage-calibrated optimization. No"),
        ({"loss": "sft"}, "learned from the preferred responses alone (`sft`, which is not the method's own loss). No"),
        ({"loss": "dpo", "sft_weight": 1.0}, "learned with the loss `dpo`, not the method's own, with a term of SFT"),
        *(({"loss": name}, f"learned with the loss `{name}`") for name in sorted({*get_args(Loss)} - {"aco", "sft"})),
        ({"loss": "<b>"}, "an adapter learned from them. No"),
    ],
)
def test_a_card_names_the_loss(project, learner, said):
    base = RunRound.of(project / "runs/r", 0).base
    assert said in model_card(base, 1, [], {"queries": "3, x", "learner": learner}, {}, [], "")
