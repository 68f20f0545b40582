"""Whole commands on machines as they are: file systems that refuse, no home, few resources, streams that are closed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import genius_lite
from genius_lite.records import Rollout
from genius_lite.rundir.lines import read_records
from tests.faults.kills import QUERIES, RECIPE, SEARCHED
from tests.faults.refusals import REFUSALS, refusing

MAIN = "from genius_lite.cli import main\nmain()\n"
PACKAGE = str(Path(genius_lite.__file__).parent.parent)
NO_PLACE = {"HOME": "/proc/nobody", "XDG_CACHE_HOME": "/proc/cache", "HF_HOME": "/proc/hf", "TMPDIR": "/proc/tmp"}


def genius(
    *arguments: str, cwd: Path, before: str = "", env: dict[str, str | None] | None = None, **options
) -> subprocess.CompletedProcess:
    """A command, with code that comes first, and other variables of the environment (None: without it)."""
    changed = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", **(env or {})}
    own = {name: value for name, value in changed.items() if value is not None}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-c", f"{before}\n{MAIN}", *arguments]
    return subprocess.run(command, cwd=cwd, env=own, text=True, timeout=300, **streams)


def lay_out(project: Path, model: Path) -> Path:
    project.mkdir(exist_ok=True)
    (project / "tiny.gguf").symlink_to(model)
    (project / "q.txt").write_text("\n".join(QUERIES))
    (project / "r.yaml").write_text(RECIPE)
    return project


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    return lay_out(tmp_path / "project", tiny_llama)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama) -> SimpleNamespace:
    """A run where everything is refused that may be, as if on a volume of its own; and what it said."""
    project = lay_out(tmp_path_factory.mktemp("refusing") / "project", tiny_llama)
    (project / "run" / "lost+found").mkdir(parents=True)
    (project / "run" / ".DS_Store").write_bytes(b"x")
    ended = genius("run", "r.yaml", "--out", "run", cwd=project, before=refusing(*REFUSALS), env={**NO_PLACE})
    return SimpleNamespace(project=project, ended=ended)


def test_a_run_goes_on_where_everything_is_refused_that_may_be(finished):
    assert (finished.ended.returncode, finished.ended.stderr) == (0, "")
    run = finished.project / "run"
    rollouts = read_records(run / "round-1" / "rollouts.jsonl", Rollout)
    assert sorted(r.query.prompt for r in rollouts) == sorted(SEARCHED)
    assert [*(run / "export").glob("*.gguf")]
    assert not [p for p in run.rglob("*") if ".partial" in p.name or "tmp" in p.name or p.name == "lock.held"]
    assert {p.name for p in finished.project.iterdir()} == {"tiny.gguf", "q.txt", "r.yaml", "run"}


@pytest.mark.parametrize(
    "command",
    [
        ("status", "run"),
        ("report", "run", "--to", "report"),
        ("export", "run", "--to", "gguf"),
        ("export", "run", "--to", "types", "--type", "Q8_0,F16"),
        ("export", "run", "--to", "peft", "--format", "peft", "--round", "1"),
        ("plan", "r.yaml", "--temporary"),
        ("validate", "r.yaml"),
        ("run", "r.yaml", "--out", "again", "--reuse", "run"),
        ("bench", "tiny.gguf", "--quants", "Q8_0"),
    ],
    ids=lambda command: " ".join(command[:1] + command[4:]),
)
def test_so_does_what_comes_after_it(finished, command):
    ended = genius(*command, cwd=finished.project, before=refusing(*REFUSALS), env={**NO_PLACE})
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [*finished.project.glob(".genius-lite-tmp*")]


def test_without_a_home_nothing_is_named_after_it(project):
    """cron and containers: no HOME, and a user whom the system does not know."""
    before = "import pwd\ndef unknown(uid):\n    raise KeyError(uid)\npwd.getpwuid = unknown"
    for cache in (None, ""):
        env = {"HOME": None, "HF_HOME": None, "XDG_CACHE_HOME": cache}
        for command in (("validate", "r.yaml"), ("doctor", "--json"), ("plan", "r.yaml", "--no-rehearsal")):
            ended = genius(*command, cwd=project, before=before, env=env)
            assert ended.returncode == 0, ended.stderr
            assert "Traceback" not in ended.stderr
        assert {p.name for p in project.iterdir()} == {"tiny.gguf", "q.txt", "r.yaml"}


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, project):
    home = tmp_path / "home"
    shutil.copytree(project, home, symlinks=True)
    (home / "r.yaml").write_text(RECIPE.replace("tiny.gguf", "~/tiny.gguf").replace("q.txt", "~/q.txt"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    short = ("--set", "learner.epochs=1", "--set", "evaluate.queries=0", "--set", "queries.limit=4")
    for command in (
        ("validate", "~/r.yaml", "--set", "model.gguf=~/tiny.gguf", "--set", "queries.source=~/q.txt"),
        ("run", "~/r.yaml", "--out=~/runs/one", *short),
        ("run", "~/r.yaml", "--set", "out=~/runs/two", "--reuse=~/runs/one", *short),
        ("status", "~/runs/one"),
        ("report", "~/runs/one", "--to=~/report"),
        ("export", "~/runs/two", "--to=~/export"),
        ("inspect", "~/tiny.gguf", "~/tiny.gguf"),
    ):
        ended = genius(*command, cwd=elsewhere, env={"HOME": str(home)})
        assert ended.returncode == 0, ended.stderr
    assert [*elsewhere.iterdir()] == []
    assert {"runs", "report", "export"} <= {p.name for p in home.iterdir()}
    for name in ("model.gguf", "queries.source", "out"):
        ended = genius(
            "validate", "~/r.yaml", "--set", f"{name}=~nobody-of-that-name/x", cwd=home, env={"HOME": str(home)}
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "begins with a home folder that is not there" in ended.stderr


def test_a_name_that_is_not_utf_8_is_one_line(project, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(project, odd, symlinks=True)
    for command, cwd in (
        (("validate", "r.yaml"), odd),
        (("validate", f"{odd}/r.yaml"), tmp_path),
        (("run", "r.yaml", f"--out={odd}/run"), project),
        (("inspect", f"{odd}/tiny.gguf"), project),
        (("status", str(odd)), project),
        (("export", str(odd), "--to", "x"), project),
    ):
        ended = genius(*command, cwd=cwd)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        assert "Traceback" not in ended.stderr
        assert "not UTF-8; rename" in " ".join(ended.stderr.replace("│", "").split())


def test_names_of_files_of_questions_may_be_anything(project):
    (project / "questions").mkdir()
    (project / "questions" / os.fsdecode(b"caf\xe9.txt")).write_text("What is 2 + 2?\nName a colour.\n")
    ended = genius("validate", "r.yaml", "--set", f"queries.source={project}/questions", cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert "queries  2," in ended.stdout


def test_names_may_be_as_long_as_the_system_takes_them(project):
    """An export is written beside itself: of a name with 255 bytes none was left for that."""
    long = "n" * 255
    (project / "tiny.gguf").rename(project / f"{'m' * 250}.gguf")
    recipe = RECIPE.replace("tiny.gguf", f"{'m' * 250}.gguf").replace("epochs: 3", "epochs: 1")
    (project / "r.yaml").write_text(recipe)
    ended = genius("run", "r.yaml", "--out", long, "--set", "queries.limit=4", cwd=project)
    assert ended.returncode == 0, ended.stderr
    ended = genius("export", long, "--to", "x" * 255, cwd=project)
    assert ended.returncode == 0, ended.stderr
    ended = genius("run", "r.yaml", "--out", "n" * 256, cwd=project)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: file name too long")


def limited(kind: int, amount: int):
    def limit() -> None:
        resource.setrlimit(kind, (amount, amount))

    return limit


@pytest.mark.parametrize(
    ("kind", "amount"), [("NOFILE", 48), ("NOFILE", 12), ("AS", 1_200_000_000), ("FSIZE", 200_000)]
)
def test_a_low_limit_is_kept_or_one_line(project, kind, amount):
    limit = limited(getattr(resource, f"RLIMIT_{kind}"), amount)
    ended = genius("run", "r.yaml", "--out", "run", cwd=project, preexec_fn=limit)
    assert ended.returncode in (0, 2), ended.stderr
    assert "Traceback" not in ended.stderr
    if ended.returncode:
        assert ended.stderr.startswith("error: ")
        ended = genius("run", "r.yaml", "--out", "run", cwd=project)
    assert ended.returncode == 0, ended.stderr


NO_THREADS = """
import threading
def start(self):
    raise RuntimeError("can't start new thread")
import genius_lite.report.terminal
threading.Thread.start = start
"""


def test_a_process_that_may_have_no_more_threads_says_so(project):
    """As `ulimit -u` does to all but root."""
    ended = genius("run", "r.yaml", "--out", "run", cwd=project, before=NO_THREADS)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "error: out of memory, or of processes" in ended.stderr


def shell(line: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """A line of bash, in which `genius-lite` is ours."""
    command = f"{sys.executable} -c 'from genius_lite.cli import main; main()'"
    text = f'genius-lite() {{ {command} "$@"; }}; {line}'
    own = {**os.environ, "PYTHONPATH": PACKAGE, **(env or {})}
    return subprocess.run(["bash", "-c", text], cwd=cwd, env=own, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "line",
    [
        "genius-lite status run | head -1",
        "genius-lite plan r.yaml --no-rehearsal | head -1",
        "genius-lite reference | head -1",
        "genius-lite reference | true",
        "genius-lite doctor | head -1",
        "genius-lite inspect tiny.gguf --json | head -1",
        "genius-lite status run >&-",
        "genius-lite status run <&- | head -1",
        "genius-lite status run 2>&- | head -1",
        "genius-lite status run >&- 2>&- <&-",
        "genius-lite validate r.yaml <&- >&- 2>&-",
        "genius-lite status run > /dev/full",
    ],
)
def test_whoever_reads_may_go(finished, line):
    ended = shell(line, finished.project)
    if "/dev/full" in line:
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    else:
        assert (ended.returncode, ended.stderr) == (0, "")


def test_a_run_whose_reader_goes_ends_and_goes_on(project):
    ended = shell("genius-lite run r.yaml --out run | head -1", project)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "Exception ignored" not in ended.stderr
    ended = shell("genius-lite run r.yaml --out run >&- 2>&-", project)
    assert ended.returncode == 0
    assert [*(project / "run" / "export").glob("*.gguf")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_signs_has_them_spelled_out(finished, encoding):
    for line in (
        "genius-lite status run",
        "genius-lite plan r.yaml --no-rehearsal",
        "echo Grüße 日本 | genius-lite chat run",
    ):
        ended = shell(line, finished.project, {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout


@pytest.mark.parametrize("columns", [0, 1, 10, 20, 40, 400])
@pytest.mark.parametrize("command", ["plan r.yaml --no-rehearsal", "status run", "inspect tiny.gguf", "doctor"])
def test_a_terminal_of_any_width_shows_something(finished, columns, command):
    """On terminals of their own, and by COLUMNS; `stty cols 0` is what some of them say."""
    on_terminal = f"script -qec 'stty cols {columns}; {sys.executable} -m genius_lite {command}' /dev/null"
    for line, env in ((f"genius-lite {command}", {"COLUMNS": str(columns)}), (on_terminal, {})):
        if line == on_terminal and not shutil.which("script"):
            continue
        ended = shell(line, finished.project, {"TERM": "xterm", **env})
        assert "Traceback" not in ended.stdout + ended.stderr
        letters = [c for c in ended.stdout if c.isalpha()]
        assert len(letters) > 100, ended.stdout
    assert ended.returncode == 0


NAMES = ("yaml", "torch", "numpy", "llama_cpp", "typer", "click", "rich", "psutil", "jinja2", "gguf", "safetensors",
         "transformers", "peft", "pydantic", "msgspec", "regex", "json", "logging", "tempfile", "random")  # fmt: skip


def test_no_code_of_the_working_directory_is_run(project):
    """A `yaml.py` may lie beside somebody's recipe; launchers start `python -m genius_lite`."""
    for name in NAMES:
        (project / f"{name}.py").write_text(f"open('{project}/ran', 'a').write('{name} ')\nraise SystemExit(9)\n")
    env = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}
    short = ["--set", "learner.epochs=1", "--set", "queries.limit=4", "--set", "sampler.slots=auto"]
    for command in (["validate", "r.yaml"], ["run", "r.yaml", "--out", "run", *short], ["status", "run"]):
        module = [sys.executable, "-m", "genius_lite", *command]
        ended = subprocess.run(module, cwd=project, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert not (project / "ran").exists()


SMALL = ("filtered.json", "quantized.json", "timings.jsonl", "report.json")


def test_a_run_goes_on_from_small_files_that_a_power_cut_emptied(finished, tmp_path):
    """ext4 may leave the name of a file that was not flushed, and nothing in it."""
    project = tmp_path / "project"
    shutil.copytree(finished.project, project, symlinks=True)
    run = project / "run"
    for name in ("summary.json", "best.json", "export", "round-1/report.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("filtered.json", "quantized.json"):
        (run / "round-1" / name).write_bytes(b"")
    for name in ("timings.jsonl", "round-1/timings.jsonl", "round-0/timings.jsonl"):
        (run / name).write_bytes(b'{"stage": "train", "seconds"' + (run / name).read_bytes() + b'{"stage": "mer')
    (run / "progress.json").write_bytes(b'{"out')
    for command in (("status", "run"), ("plan", "r.yaml", "--set", "out=run"), ("run", "r.yaml", "--out", "run")):
        ended = genius(*command, cwd=project)
        assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert json.loads((run / "round-1" / "quantized.json").read_text())["share"] is not None
    timings = (run / "round-1" / "timings.jsonl").read_bytes()
    assert timings.endswith(b"}\n"), "the torn line is gone"


@pytest.mark.parametrize("partial", ["recipe.json.partial", "lock.held.partial"])
def test_a_run_goes_on_that_was_killed_with_its_first_file(project, partial):
    (project / "run").mkdir()
    (project / "run" / partial).write_bytes(b'{"mod')
    (project / "run" / "lock").write_bytes(b"")
    ended = genius("run", "r.yaml", "--out", "run", "--set", "queries.limit=4", cwd=project)
    assert ended.returncode == 0, ended.stderr
