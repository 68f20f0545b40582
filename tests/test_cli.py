"""Commands as a user types them, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import gguf
import msgspec
import pytest

from genius_lite import __version__
from genius_lite.records import Rollout
from genius_lite.results.evaluation import Response
from genius_lite.rundir.lines import read_records
from genius_lite.rundir.reader import RunFolder
from tests.conftest import FORKED_HELPERS
from tests.support import forked, warm
from tests.support.cli import RECIPE, genius
from tests.support.models import tiny_gguf

pytestmark = FORKED_HELPERS


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\nfour\nfour\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_a_whole_run_its_export_and_chat(project):
    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    out = project / "runs" / "r"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["queries"], summary["duplicates_dropped"], len(summary["rounds"])) == (4, 1, 2)
    for number, report in enumerate(summary["rounds"], 1):
        rollouts = read_records(out / f"round-{number}" / "rollouts.jsonl", Rollout)
        assert report["rollouts"]["sampled_tokens"] == sum(r.sampled_tokens for r in rollouts)
        assert {r.query.prompt for r in rollouts} == {"one", "two", "three", "four"}
        assert f"{report['rollouts']['sampled_tokens']:,}" in result.stdout
        assert report["training"]["margin"] > 0
    exported = project / summary["exported"]
    assert exported.name in result.stdout
    assert gguf.GGUFReader(exported).fields["general.file_type"].contents() == 1, "that of the model"
    assert subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=exported.parent).returncode == 0
    assert list(out.rglob("*.partial")) == []

    again = genius("run", "r.yaml", cwd=project)
    assert again.returncode == 0
    assert "rollouts" not in again.stdout

    for arguments, kind in [((), 1), (("--round", 0, "--type", "Q4_0"), 2), (("--type", "Q8_0"), 7)]:
        result = genius("export", "runs/r", "--to", f"x{kind}", *arguments, cwd=project)
        assert result.returncode == 0, result.stderr
        (file,) = (project / f"x{kind}").glob("*.gguf")
        assert gguf.GGUFReader(file).fields["general.file_type"].contents() == kind
        assert f"llama-cli -m x{kind}/{file.name}" in result.stdout
    assert genius("export", "runs/r", "--to", "x1", cwd=project).returncode == 2
    for model in ("runs/r", "tiny.gguf"):
        chat = genius("chat", model, "--max-tokens", 5, "--context", 128, cwd=project, given="hello\nand again\n")
        assert chat.returncode == 0, chat.stderr
        assert len(chat.stdout.encode()) >= 2


def test_a_run_that_the_guard_halts_exits_with_3_and_gives_back_the_base_model(project):
    (project / "q.txt").write_text("".join(f"question {n}\n" for n in range(20)))  # of a handful of pairs it only warns
    (project / "r.yaml").write_text(RECIPE + "guard: {margin: {halt: 1e9}}\n")
    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    words = " ".join(result.stdout.split())
    assert "halt: the learned margin is" in words
    assert "Stopped: the collapse guard halted round 1." in words
    assert "Base model: " in words
    assert not (project / "runs/r/round-2/adapter").exists()
    assert genius("run", "r.yaml", cwd=project).returncode == 3

    (project / "t.jsonl").write_text("".join(json.dumps({"prompt": w, "answer": w}) + "\n" for w in ("one", "two")))
    asked = ("eval", "runs/r", "--tasks", "t.jsonl:exact", "--samples", 0, "--max-tokens", 8)
    for command, shown in ((asked, 1), ((*asked, "--against", "tiny.gguf"), 2), (("chat", "runs/r"), 0)):
        result = genius(*command, cwd=project, given="one\n")
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("note: the best round of runs/r is the base model itself") == 1
        measured = [line for line in result.stdout.splitlines() if " greedy " in line and "%" in line]
        assert len(measured) == shown, "it is not set beside itself"


def test_tasks_are_measured_each_round_compared_and_measured_again_alone(project):
    problems = [{"prompt": word, "answer": word} for word in ("one", "two", "three")]
    (project / "t.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    task = "evaluate:\n  tasks: [{source: t.jsonl, check: exact}]\n  samples: 2\n"
    for seed in (0, 1):
        recipe = RECIPE.replace("rounds: 2", f"rounds: 1\nseed: {seed}").replace("q.txt}", "q.txt, system: Be brief.}")
        (project / f"s{seed}.yaml").write_text(recipe + task)
        result = genius("run", f"s{seed}.yaml", cwd=project)
        assert result.returncode == 0, result.stderr
        summary = json.loads((project / f"runs/s{seed}/summary.json").read_text())
        (measured,) = summary["rounds"][0]["evaluation"]
        assert (measured["problems"], measured["samples"]) == (3, 2)
        assert measured["sampled"]["low"] <= measured["sampled"]["estimate"] <= measured["sampled"]["high"]

    # Recipes that differ in nothing but the seed are one arm.
    pooled = genius("compare", "runs/s0", "runs/s1", "--json", cwd=project)
    assert pooled.returncode == 0, pooled.stderr
    (row,) = json.loads(pooled.stdout)
    assert (row["arm"], row["seeds"], row["round"]) == ("s0", 2, 1)
    table = genius("compare", "runs/s0", "runs/s1", cwd=project, env={**os.environ, "COLUMNS": "80"}).stdout
    assert "2 seeds" in table
    assert max(map(len, table.splitlines())) <= 80

    again = genius("eval", "runs/s0", "--tasks", "t.jsonl:exact", "--samples", 1, "--max-tokens", 8, "--out", "e",
                   cwd=project)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "3 problems" in again.stdout
    assert "t.jsonl: answers are compared by the checker `exact`." in again.stdout
    assert {file.name for file in (project / "e").iterdir()} == {
        "results.json",
        "responses-0.jsonl",
        "responses-1.jsonl",
    }

    # Tasks are asked as the run asked, whatever a recipe that names them says: after the same system message, for as
    # long a response; of a GGUF as the recipe says.
    (project / "long.yaml").write_text((project / "s0.yaml").read_text() + "  max_tokens: 30\n")
    for case, (model, tasks, rounds) in enumerate(
        (("runs/s0", "t.jsonl:exact", (0, 1)), ("runs/s0", "long.yaml", (0, 1)), ("tiny.gguf", "s0.yaml", (0,)))
    ):
        chosen, out = ("--round", 1) if len(rounds) == 2 else (), f"same-{case}"
        same = genius("eval", model, *chosen, "--tasks", tasks, "--samples", 2, "--out", out, cwd=project)
        assert same.returncode == 0, same.stderr
        for number in rounds:
            alone = read_records(project / out / f"responses-{number}.jsonl", Response)
            of_run = [
                msgspec.structs.replace(r, use="report") for r in RunFolder(project / "runs/s0").round(number).responses
            ]
            assert list(alone) == of_run
    chats = [
        genius("chat", *which, "--temperature", 0, "--max-tokens", 12, cwd=project, given="one\n").stdout
        for which in (("runs/s0", "--round", 0), ("tiny.gguf", "--system", "Be brief."), ("tiny.gguf",))
    ]
    assert chats[0] == chats[1] != chats[2], "a run's model is talked to as it was asked"

    for command, said in (
        (("eval", "tiny.gguf", "--tasks", "s0.yaml", "--tasks", "long.yaml"), "say which with --max-tokens"),
        (("eval", "runs/s0", "--tasks", "s0.yaml", "--tasks", "r.yaml"), "r.yaml: the recipe has no evaluate.tasks"),
        (("compare", "runs/s0", "nowhere"), "nowhere is no run folder"),
        (("eval", "runs/s0", "--tasks", "t.jsonl:exact", "--out", "e"), "e has results, which are whole"),
        (("eval", "absent.gguf", "--tasks", "t.jsonl:exact", "--out", "f"), "absent.gguf: no such GGUF file"),
        (("eval", "tiny.gguf", "--tasks", "absent.jsonl:exact"), "absent.jsonl"),
    ):
        refused = genius(*command, cwd=project)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert not [*project.glob("*.asked")], "nothing is left of what was refused"


@pytest.mark.parametrize("stage", ["recipe.json", "round-1/rollouts.jsonl", "round-1/pairs.jsonl", "round-2"])
def test_killed_anywhere_it_goes_on_and_repeats_no_finished_query(project, stage):
    out = project / "runs" / "r"
    run_and_kill(project, out / stage)
    kept = {p: p.read_bytes() for p in out.rglob("rollouts.jsonl")}
    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    for log, before in kept.items():
        intact = before[: before.rfind(b"\n") + 1]
        assert log.read_bytes().startswith(intact), "a finished query was sampled again"
    for number in (1, 2):
        ids = [r.query.id for r in read_records(out / f"round-{number}" / "rollouts.jsonl", Rollout)]
        assert len(ids) == len(set(ids)) == 4
    assert (out / "summary.json").exists()


def test_what_was_killed_goes_on_to_say_what_it_would_have_said(project):
    """With one branch at a time, as rounding goes by what is decoded together."""
    recipe = RECIPE.replace("rounds: 2", "rounds: 1").replace("slots: 8", "slots: 1, parked: 1, threads: 1")
    (project / "r.yaml").write_text(recipe)
    run_and_kill(project, project / "runs/r/round-1/rollouts.jsonl")
    said = []
    for out in ("runs/r", "runs/never-killed"):
        result = genius("run", "r.yaml", "--out", out, cwd=project)
        assert result.returncode == 0, result.stderr
        rollouts = read_records(project / out / "round-1" / "rollouts.jsonl", Rollout)
        said.append({r.query.id: [c.tokens for step in r.steps for c in step.candidates] for r in rollouts})
    assert said[0] == said[1]


def run_and_kill(project: Path, path: Path) -> None:
    """Run the recipe, and kill it as soon as it has written to this file."""
    asked = forked.Asked("genius_lite", ["run", "r.yaml"], str(project), {**os.environ})
    with (project / "log").open("wb") as log, forked.ask(warm.server(), asked, [log.fileno()] * 3) as command:
        deadline = time.monotonic() + 120
        while not (path.exists() and (path.suffix != ".jsonl" or path.stat().st_size)):
            assert time.monotonic() < deadline, (project / "log").read_text()
            time.sleep(0.02)
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("chat", "tiny.gguf", "--round", 1), "--round is for a run folder, and tiny.gguf is none; leave it out"),
        (
            ("eval", "tiny.gguf", "--tasks", "t.jsonl", "--round", 0),
            "--round is for a run folder, and tiny.gguf is none",
        ),
        (
            ("questions", ".", "--model", "r.yaml", "--out", "o.jsonl", "--round", 1),
            "--round is for a run folder, and r",
        ),
        (("chat", "tiny.gguf", "--seed", -1), "Invalid value for '--seed': "),
    ],
)
def test_options_that_do_not_go_with_a_model_are_refused(project, command, told):
    result = genius(*command, cwd=project)
    assert result.returncode == 2
    assert told in " ".join(result.stderr.replace("\u2502", "").split()), result.stderr
    assert "Traceback" not in result.stderr


def test_any_name_may_be_that_of_a_run_folder(project):
    out = "runs/\N{GRINNING FACE} 'a' \"b\""
    result = genius("run", "r.yaml", "--out", out, "--set", "rounds=1", cwd=project)
    assert result.returncode == 0, result.stderr
    assert (project / out / "summary.json").is_file()


def _unsupported(folder: Path) -> None:
    raw = (folder / "tiny.gguf").read_bytes()
    (folder / "tiny.gguf").unlink()
    (folder / "tiny.gguf").write_bytes(raw.replace(b"llama", b"lloma"))


def _truncated(folder: Path) -> None:
    raw = (folder / "tiny.gguf").read_bytes()
    (folder / "tiny.gguf").unlink()
    (folder / "tiny.gguf").write_bytes(raw[: len(raw) // 2])


def _other_run_folder(folder: Path) -> None:
    (folder / "runs" / "r").mkdir(parents=True)
    (folder / "runs" / "r" / "recipe.json").write_text('{"seed": 99}')


BAD = {
    "misspelt key": (lambda f: (f / "r.yaml").write_text(RECIPE + "sampelr: {}\n"), "did you mean `sampler`"),
    "missing model": (lambda f: (f / "tiny.gguf").unlink(), "no such GGUF file"),
    "truncated model": (_truncated, "cut short"),
    "unsupported architecture": (_unsupported, "`lloma` cannot be trained"),
    "empty queries": (lambda f: (f / "q.txt").write_text(""), "the file is empty"),
    "long query": (lambda f: (f / "q.txt").write_text("x" * 600), "more than the context of 512"),
    "another recipe's folder": (_other_run_folder, "made by another recipe"),
    "no recipe": (lambda f: (f / "r.yaml").unlink(), "no such recipe"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_touched(project, case):
    spoil, message = BAD[case]
    spoil(project)
    before = sorted(str(p) for p in project.rglob("*") if p.name != "lock")
    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(str(p) for p in project.rglob("*") if p.name != "lock") == before


def test_a_folder_in_use_and_a_full_disk(project, monkeypatch):
    from genius_lite.errors import UserError
    from genius_lite.pipeline.job import prepare
    from genius_lite.plan.fit import require_room
    from genius_lite.recipe.reader import load
    from genius_lite.rundir import disk, folder

    monkeypatch.chdir(project)
    with folder.open_folder(Path("runs/r"), prepare(load(Path("r.yaml"))).identity):
        result = genius("run", "r.yaml", cwd=project)
        assert (result.returncode, "in use by another process" in result.stderr) == (2, True)
    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    job = prepare(load(Path("r.yaml")))
    with pytest.raises(UserError, match="make room"):
        require_room(job)


def test_validate_and_help(project):
    result = genius("validate", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "4, the longest of" in result.stdout
    assert not (project / "runs").exists()
    assert genius("--version", cwd=project).stdout.strip() == f"genius-lite {__version__}"
    assert "validate" in genius("--help", cwd=project).stdout
    assert genius("run", cwd=project).returncode == 2


def test_validate_needs_no_cache_and_leaves_nothing(project):
    before = sorted(project.rglob("*"))
    env = {**os.environ, "HOME": "/proc/nobody", "HF_HOME": "/proc/hf", "XDG_CACHE_HOME": ""}
    result = genius("validate", "r.yaml", cwd=project, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(project.rglob("*")) == before


def test_validate_says_how_rows_are_read_and_which_are_set_aside(project):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"What is {n}?"}]}) for n in range(20)]
    rows[3] = '{"messages": "'
    (project / "q.jsonl").write_text("\n".join(rows))
    shown = genius("validate", "r.yaml", "--set", "queries.source=q.jsonl", cwd=project).stdout
    assert "queries  19, the longest of" in shown
    assert "note     rows are read as conversations (OpenAI's `messages`)\n" in shown
    assert "note     1 row is set aside; q.jsonl:4: not JSON: " in shown
    strict = genius("validate", "r.yaml", "--strict", "--set", "queries.source=q.jsonl", cwd=project)
    assert strict.returncode == 2
    assert "1 row is set aside; q.jsonl:4: not JSON: " in strict.stderr
    rows[3] = '{"messages": [{"role": "user", "content": " "}]}'
    (project / "q.jsonl").write_text("\n".join(rows))
    blank = genius("validate", "r.yaml", "--strict", "--set", "queries.source=q.jsonl", cwd=project)
    assert "note     1 row is blank; the first is q.jsonl:4\n" in blank.stdout, blank.stderr
    piped = genius("validate", "r.yaml", "--set", 'queries.source="-"', cwd=project, given="\n".join(rows))
    assert "queries  19, the longest of" in piped.stdout


def test_a_quantized_qwen2_goes_through_too(project):
    (project / "tiny.gguf").unlink()
    tiny_gguf(project / "tiny.gguf", "qwen2", kind=gguf.GGMLQuantizationType.Q8_0)
    (project / "r.yaml").write_text(RECIPE.replace("rounds: 2", "rounds: 1") + "quantize: {type: Q4_0}\n")
    result = genius("run", "r.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    (exported,) = (project / "runs" / "r" / "export").glob("*.gguf")
    assert gguf.GGUFReader(exported).fields["general.file_type"].contents() == 2


def test_bench_measures_and_prints_recipe_lines(project):
    from genius_lite.recipe.reader import parse

    result = genius("bench", "tiny.gguf", "--quants", "Q4_0,F16", cwd=project)
    assert result.returncode == 0, result.stderr
    table, _, lines = result.stdout.partition("sampler:")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert {row[-8] for row in rows} >= {"is", "Q4_0", "F16"}
    assert all(float(row[-3]) > 0 for row in rows)
    best = max(rows, key=lambda row: float(row[-3]))
    settings = parse("model: {gguf: m}\nqueries: {source: q}\nsampler:" + lines).sampler
    assert str(settings.slots) == best[-7]
    assert genius("bench", "tiny.gguf", "--quants", "Q9", cwd=project).returncode == 2


def test_inspect_describes_and_compares(project):
    tiny_gguf(project / "q8.gguf", "llama", kind=gguf.GGMLQuantizationType.Q8_0)
    shown = genius("inspect", "tiny.gguf", "--sha256", cwd=project)
    assert shown.returncode == 0, shown.stderr
    assert "llama" in shown.stdout
    described = json.loads(genius("inspect", "tiny.gguf", "--json", cwd=project).stdout)
    assert described["tensors"] == len(gguf.GGUFReader(project / "tiny.gguf").tensors)
    compared = genius("inspect", "tiny.gguf", "q8.gguf", "--json", cwd=project)
    assert json.loads(compared.stdout), compared.stderr
    missing = genius("inspect", "none.gguf", cwd=project)
    assert (missing.returncode, missing.stderr) == (2, "error: none.gguf: no such GGUF file\n")
