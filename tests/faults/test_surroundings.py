"""Whole commands on machines as they are: file systems that refuse, no home, few resources, streams that are closed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import genius_lite
from genius_lite.data.rows import Columns, read_rows
from genius_lite.errors import UserError
from genius_lite.recipe.reader import load, parse
from genius_lite.records import Rollout
from genius_lite.report.console import terminal
from genius_lite.rundir.lines import read_records
from tests.faults.kills import QUERIES, RECIPE, searched
from tests.faults.refusals import REFUSALS, refusing
from tests.support import forked as forks
from tests.support import warm
from tests.support.cli import genius as forked

MAIN = "from genius_lite.cli import main\nmain()\n"
PACKAGE = str(Path(genius_lite.__file__).parent.parent)
NO_PLACE = {"HOME": "/proc/nobody", "XDG_CACHE_HOME": "/proc/cache", "HF_HOME": "/proc/hf", "TMPDIR": "/proc/tmp"}
NAMES = ("yaml", "torch", "numpy", "llama_cpp", "typer", "click", "rich", "psutil", "jinja2", "gguf", "safetensors",
         "transformers", "peft", "pydantic", "msgspec", "regex", "json", "logging", "tempfile", "random")  # fmt: skip
FEW = QUERIES[:10]  # what goes wrong here does so with these as with many; one is held out
SHORT = ("--set", "queries.limit=4", "--set", "learner.epochs=1", "--set", "evaluate.queries=0")


_MADE = {
    "0 import": "hf-checkpoint", "0 evaluate": "round-0", "1 rollouts": "round-1", "1 pairs": "round-1/pairs.jsonl",
    "1 train": "round-1/adapter", "1 merge": "round-1/policy.gguf", "1 evaluate": "round-1/evaluation",
    "1 export": "export",
}  # fmt: skip
"""Stages by their order, and what is there once they are over."""


def environment(**changed: str | None) -> dict[str, str]:
    """This one with changes; variables that are None are taken away."""
    told = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1", **changed}
    return {name: value for name, value in told.items() if value is not None}


def genius(
    *arguments: str, cwd: Path, before: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """A command in an interpreter of its own, which imports every library, with code that comes first."""
    command = [sys.executable, "-c", f"{before}\n{MAIN}", *arguments]
    return subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=300)


def lay_out(project: Path, model: Path) -> Path:
    project.mkdir(exist_ok=True)
    (project / "tiny.gguf").symlink_to(model)
    (project / "q.txt").write_text("\n".join(FEW))
    (project / "r.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 1"))
    return project


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    return lay_out(tmp_path / "project", tiny_llama)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama) -> SimpleNamespace:
    """A run where everything is refused that may be, as if on a volume of its own, beside modules of the libraries'
    names; and what it said."""
    folder = tmp_path_factory.mktemp("refusing")
    project, site = lay_out(folder / "project", tiny_llama), folder / "site"
    (project / "run" / "lost+found").mkdir(parents=True)
    (project / "run" / ".DS_Store").write_bytes(b"x")
    for name in NAMES:
        (project / f"{name}.py").write_text(f"open('{project}/ran', 'a').write('{name} ')\nraise SystemExit(9)\n")
    site.mkdir()
    (site / "sitecustomize.py").write_text(refusing(*REFUSALS))
    env = environment(**NO_PLACE, PYTHONPATH=os.pathsep.join((str(site), PACKAGE)))
    command = [sys.executable, "-m", "genius_lite", "run", "r.yaml", "--out", "run"]  # as launchers start it
    ended = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)
    return SimpleNamespace(project=project, ended=ended)


def from_stage(stage: str, finished: SimpleNamespace, project: Path) -> Path:
    """Copy the finished run, but for what this stage and those after it made."""
    later = [*_MADE][[*_MADE].index(stage) :]
    shutil.copytree(finished.project, project, symlinks=True, ignore=lambda folder, names: {"again"} & {*names})
    for made in ("summary.json", "best.json", "round-1/report.json", *(_MADE[name] for name in later)):
        path = project / "run" / made
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return project


def test_a_run_goes_on_where_everything_is_refused_that_may_be(finished):
    assert (finished.ended.returncode, finished.ended.stderr) == (0, "")
    run = finished.project / "run"
    rollouts = read_records(run / "round-1" / "rollouts.jsonl", Rollout)
    assert sorted(r.query.prompt for r in rollouts) == sorted(searched(FEW))
    assert [*(run / "export").glob("*.gguf")]
    assert not [p for p in run.rglob("*") if ".partial" in p.name or "-tmp" in p.name or p.name == "lock.held"]
    modules = {f"{name}.py" for name in NAMES}
    assert {p.name for p in finished.project.iterdir()} - modules == {"tiny.gguf", "q.txt", "r.yaml", "run"}


@pytest.mark.parametrize(
    "command",
    [
        ("report", "run", "--to", "report"),
        ("export", "run", "--to", "types", "--type", "Q8_0,F16"),
        ("plan", "r.yaml", "--temporary"),
        ("run", "r.yaml", "--out", "again", "--reuse", "run"),
    ],
    ids=lambda command: command[0],
)
def test_so_does_what_comes_after_it(finished, command):
    ended = forked(*command, cwd=finished.project, before=refusing(*REFUSALS), env=environment(**NO_PLACE))
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not [*finished.project.glob(".genius-lite-tmp*")]


def test_without_a_home_nothing_is_named_after_it(project):
    """cron and containers: no HOME, and a user whom the system does not know."""
    before = "import pwd\ndef unknown(uid):\n    raise KeyError(uid)\npwd.getpwuid = unknown"
    env = environment(HOME=None, HF_HOME=None, XDG_CACHE_HOME="")
    for start, *command in ((forked, "validate", "r.yaml"), (genius, "plan", "r.yaml", "--no-rehearsal")):
        ended = start(*command, cwd=project, before=before, env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert {p.name for p in project.iterdir()} == {"tiny.gguf", "q.txt", "r.yaml"}


def test_a_tilde_is_the_home_folder_in_every_path_and_names_are_as_long_as_the_system_takes(tmp_path, project):
    """An export was written beside itself: of a name with 255 bytes none was left for that."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    project.rename(home)
    elsewhere.mkdir()
    (home / "tiny.gguf").rename(home / f"{'m' * 250}.gguf")
    (home / "r.yaml").write_text(RECIPE.replace("tiny.gguf", f"~/{'m' * 250}.gguf").replace("q.txt", "~/q.txt"))
    run, export = f"~/{'n' * 255}", f"~/{'x' * 255}"
    for command in (
        ("run", "~/r.yaml", f"--out={run}", "--set", "queries.source=~/q.txt", *SHORT),
        ("status", run),
        ("export", run, f"--to={export}"),
    ):
        ended = forked(*command, cwd=elsewhere, env={**os.environ, "HOME": str(home)})
        assert ended.returncode == 0, ended.stderr
    assert [*elsewhere.iterdir()] == []
    assert {"n" * 255, "x" * 255} <= {p.name for p in home.iterdir()}
    ended = forked("run", "~/r.yaml", f"--out={run}n", cwd=elsewhere, env={**os.environ, "HOME": str(home)})
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: file name too long")


@pytest.mark.parametrize("key", ["out: ~{}/run", "model: {{gguf: ~{}/m.gguf}}", "model: {{gguf: a, weights: ~{}/w}}"])
def test_a_home_that_is_not_there_is_one_line(key):
    rest = "queries: {source: a}\n" + ("" if key.startswith("model") else "model: {gguf: a}\n")
    told = r"recipe:\d+: `[\w.]+` is .* which begins with a home folder that is not there"
    with pytest.raises(UserError, match=told):
        parse(key.format("nobody-of-that-name") + "\n" + rest)


def test_a_name_that_is_not_utf_8_is_one_line(project, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    project.rename(odd)
    with pytest.raises(UserError, match="has a name in it that is not UTF-8; rename that"):
        load(odd / "r.yaml")
    for command in (("validate", "r.yaml"), ("status", str(odd))):
        ended = genius(*command, cwd=odd)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        assert "Traceback" not in ended.stderr
        assert "not UTF-8; rename" in " ".join(ended.stderr.replace("│", "").split())


def test_names_of_files_of_questions_may_be_anything(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"prompt": "What is 2 + 2?"}\n')
    (row,) = read_rows(str(tmp_path), [Columns(("prompt",))])
    assert row.values == {"prompt": "What is 2 + 2?"}


def _limited(kind: str, amount: int) -> str:
    return f"import resource\nresource.setrlimit(resource.RLIMIT_{kind}, ({amount}, {amount}))"


def test_a_low_limit_is_one_line_and_the_run_goes_on_without_it(project):
    command = ("run", "r.yaml", "--out", "run", *SHORT)
    for start, limit in (
        (forked, _limited("NOFILE", 12)),
        # Where libraries in C++ are being imported, as at 700 MB, nobody can say anything: they abort.
        (genius, _limited("AS", 450_000_000)),
        (forked, _limited("FSIZE", 50_000)),
    ):
        ended = start(*command, cwd=project, before=limit)
        told = ended.stderr.splitlines()
        assert ended.returncode == 2, (limit, told)
        assert told[-1].startswith("error: "), limit
        assert len(told) == 1 or "AS" in limit, told  # where memory lacks, libraries may warn of it before
        assert "Traceback" not in ended.stderr
    ended = forked(*command, cwd=project, before=_limited("NOFILE", 64))
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
    ended = forked("run", "r.yaml", "--out", "run", cwd=project, before=NO_THREADS)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "error: out of memory, or of processes" in ended.stderr


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(project):
    before = "import genius_lite.cli\ndef app():\n    raise KeyboardInterrupt\ngenius_lite.cli.app = app"
    ended = forked("doctor", cwd=project, before=before)
    assert (ended.returncode, ended.stderr) == (130, "")


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """A line of bash, in which `genius-lite` is ours; it is an interpreter of its own where that makes the streams."""
    own_interpreter = "&-" in line or "PYTHONIOENCODING" in env
    command = [sys.executable, "-m", "genius_lite"] if own_interpreter else forks.command(warm.server(), "genius_lite")
    text = f'genius-lite() {{ {shlex.join(command)} "$@"; }}; {line}'
    own = {**os.environ, "PYTHONPATH": PACKAGE, **env}
    return subprocess.run(["bash", "-c", text], cwd=cwd, env=own, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "line",
    [
        "genius-lite status run | head -1",
        "genius-lite reference | true",
        "genius-lite inspect tiny.gguf --json | head -1",
        "genius-lite status run <&- | head -1",
        "genius-lite status run >&- 2>&- <&-",
        "genius-lite status run > /dev/full",
    ],
)
def test_whoever_reads_may_go(finished, line):
    if "/dev/full" in line and not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    ended = shell(line, finished.project)
    if "/dev/full" in line:
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    else:
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_file_that_does_not_take_all_that_is_printed_is_one_line(tmp_path, unbuffered):
    """With PYTHONUNBUFFERED, as in containers, the rest was lost without a word."""
    env = {"PYTHONUNBUFFERED": unbuffered}
    with (tmp_path / "out").open("w") as out:
        own = {**os.environ, "PYTHONPATH": PACKAGE, **env}
        command = [sys.executable, "-c", f"{_limited('FSIZE', 1000)}\n{MAIN}", "reference"]
        ended = subprocess.run(command, env=own, stdout=out, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: file too large")


CLOSED = """
import os, sys
os.close(1)
os.close(2)
sys.stdout = sys.stderr = None
"""
"""Standard streams as Python has them whom a shell starts with `>&- 2>&-`."""


def test_a_run_whose_reader_goes_ends_and_goes_on(project):
    line = shlex.join(["genius-lite", "run", "r.yaml", "--out", "run", *SHORT])
    ended = shell(f"{line} | head -1", project)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "ignored" not in ended.stderr
    ended = forked("run", "r.yaml", "--out", "run", *SHORT, cwd=project, before=CLOSED)
    assert ended.returncode == 0
    assert [*(project / "run" / "export").glob("*.gguf")]


@pytest.mark.parametrize("line", ["genius-lite status run", "echo Grüße 日本 | genius-lite chat run"])
def test_a_terminal_that_lacks_signs_has_them_spelled_out(finished, line):
    ended = shell(line, finished.project, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    told = [line for line in ended.stderr.splitlines() if line and not line.startswith("cut off after ")]
    assert (ended.returncode, told) == (0, [])
    assert ended.stdout


@pytest.mark.parametrize("columns", [0, 1, 10, 19, 400])
def test_a_console_of_any_width_has_room_for_a_word(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert terminal().width == max(columns or 80, 20)


@pytest.mark.skipif(not shutil.which("script"), reason="needs `script`, which makes terminals")
@pytest.mark.parametrize("columns", [0, 10])
def test_a_terminal_of_any_width_shows_something(finished, columns):
    """`stty cols 0` is what some of them say."""
    status = shlex.join(forks.command(warm.server(), "genius_lite", "status", "run"))
    ended = shell(f"script -qec 'stty cols {columns}; {status}' /dev/null", finished.project, TERM="xterm")
    assert ended.returncode == 0
    assert "Traceback" not in ended.stdout + ended.stderr
    assert len([c for c in ended.stdout if c.isalpha()]) > 50, ended.stdout


def test_no_code_of_the_working_directory_is_run(finished):
    """A `yaml.py` may lie beside somebody's recipe, or beside a run that is only looked at."""
    assert len([*finished.project.glob("*.py")]) == len(NAMES)
    assert not (finished.project / "ran").exists()


def test_a_run_goes_on_from_small_files_that_a_power_cut_emptied(finished, tmp_path):
    """ext4 may leave the name of a file that was not flushed, and nothing in it."""
    project = tmp_path / "project"
    shutil.copytree(finished.project, project, symlinks=True, ignore=lambda folder, names: {"again"} & {*names})
    run = project / "run"
    for name in ("summary.json", "best.json", "export", "round-1/report.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("filtered.json", "quantized.json"):
        (run / "round-1" / name).write_bytes(b"")
    for name in ("timings.jsonl", "round-1/timings.jsonl", "round-0/timings.jsonl"):
        (run / name).write_bytes(b'{"stage": "train", "seconds"' + (run / name).read_bytes() + b'{"stage": "mer')
    (run / "progress.json").write_bytes(b'{"out')
    env = {**os.environ, warm.FORKED_HELPERS: "1"}
    for command in (("status", "run"), ("run", "r.yaml", "--out", "run")):
        ended = forked(*command, cwd=project, env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert b'"kept"' in (run / "round-1" / "quantized.json").read_bytes()
    assert (run / "round-1" / "timings.jsonl").read_bytes().endswith(b"}\n"), "the torn line is gone"


FULL = """
import resource
from genius_lite.report.terminal import TerminalProgress
enter = TerminalProgress.enter
def until(self, number, stage):
    if f"{{number}} {{stage}}" == "{stage}":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    enter(self, number, stage)
TerminalProgress.enter = until
"""


@pytest.mark.parametrize("stage", _MADE)
def test_a_disk_that_is_full_is_one_line_in_every_stage(finished, tmp_path, stage):
    """No file may grow any more from the beginning of a stage on, which needs neither root nor a disk of its own."""
    project = from_stage(stage, finished, tmp_path / "project")
    ended = forked("run", "r.yaml", "--out", "run", cwd=project, before=FULL.format(stage=stage))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: file too large")


AWAY = """
import os
from genius_lite.report.terminal import TerminalProgress
enter = TerminalProgress.enter
def until(self, number, stage):
    if f"{{number}} {{stage}}" == "{stage}":
        os.rename("{what}", "away")
    enter(self, number, stage)
TerminalProgress.enter = until
"""


@pytest.mark.parametrize(
    ("what", "stage", "said"),
    [
        ("run", "1 pairs", "error: run is not there any more: it was moved or deleted while this went on"),
        ("run", "1 evaluate", "error: run is not there any more"),
        ("tiny.gguf", "1 merge", "error: "),
        ("run/hf-checkpoint", "1 train", "error: no such file or directory (run/hf-checkpoint/"),
        (
            "run/round-1/rollouts.jsonl",
            "1 pairs",
            "error: no such file or directory (run/round-1/rollouts.jsonl); it was",
        ),
    ],
)
def test_what_is_moved_away_while_a_run_goes_on_is_one_line_and_it_goes_on(finished, tmp_path, what, stage, said):
    """Each was a traceback."""
    command, project = ("run", "r.yaml", "--out", "run"), from_stage(stage, finished, tmp_path / "project")
    env = {**os.environ, warm.FORKED_HELPERS: "1"}
    ended = forked(*command, cwd=project, before=AWAY.format(stage=stage, what=what), env=env)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith(said)
    assert what in ended.stderr
    (project / "away").rename(project / what)
    ended = forked(*command, cwd=project, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
