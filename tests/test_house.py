"""The house rules that a machine can check: imports only go down, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genius_lite

ROOT = Path(genius_lite.__file__).parent
FLOORS = {
    "__main__": 7,
    "cli": 7,
    "run": 6,
    "api": 6,
    "stages": 5,
    "policies": 5,
    "searching": 5,
    "answering": 5,
    "serving": 5,
    "shards": 5,
    "round": 5,
    "job": 5,
    "reuse": 5,
    "trial": 5,
    "interview": 5,
    "plan": 5,
    "doctor": 5,
    "cluster": 4,
    "tuning": 4,
    "bench": 4,
    "chat": 4,
    "report": 4,
    "export": 4,
    "evaluate": 4,
    "foresight": 3,
    "learner": 3,
    "weights": 3,
    "sampler": 2,
    "rundir": 1,
    "lines": 1,
    "queries": 1,
    "prompts": 1,
    "templates": 1,
    "limited": 1,
    "hardware": 1,
    "measurements": 1,
    "recipe": 0,
    "records": 0,
    "errors": 0,
    "stopping": 0,
    "visible": 0,
    "__init__": 0,
}
FILES = sorted(ROOT.rglob("*.py"))


def _room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "genius_lite" and len(parts) > 1:
                rooms.add(parts[1] if parts[1] in FLOORS else "__init__")
    return rooms


def test_every_file_has_a_floor():
    assert {_room(f) for f in FILES} <= set(FLOORS)


def test_imports_only_go_down():
    upward = [
        f"{file.relative_to(ROOT)} imports {room}"
        for file in FILES
        for room in _imported_rooms(file)
        if room != _room(file) and FLOORS[room] > FLOORS[_room(file)]
    ]
    assert upward == []


def test_rooms_of_a_floor_do_not_import_each_other_in_a_circle():
    edges = {(_room(f), room) for f in FILES for room in _imported_rooms(f) if room != _room(f)}
    assert [e for e in edges if e[::-1] in edges] == []


def test_files_stay_small():
    assert [f.name for f in FILES if len(f.read_text().splitlines()) > 300] == []


def test_nothing_that_is_read_can_run_code():
    """No pickle, no code of a repository's own; data from `torch.load` and `np.load` is data only."""
    assert [found for file in FILES for found in _runs_code(file)] == []


def _runs_code(file: Path) -> Iterator[str]:
    pickles = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(ast.parse(file.read_text())):
        where = f"{file.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if pickles & {name.split(".")[0] for name in names}:
                yield f"{where}: imports a pickle"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("trust_remote_code", "False") != "False":
            yield f"{where}: trusts remote code"
        if called.startswith("Auto") and called.endswith(".from_pretrained") and "trust_remote_code" not in given:
            yield f"{where}: {called} may ask whether to trust remote code"
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{where}: torch.load reads pickles"
        if given.get("allow_pickle", "False") != "False":
            yield f"{where}: allows pickles"
        if called in ("eval", "exec", "compile", "__import__"):
            yield f"{where}: {called} runs what it is given"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_what_would_run_code_is_found(tmp_path, code):
    (tmp_path / "x.py").write_text(code)
    assert len([*_runs_code(tmp_path / "x.py")]) == 1


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, genius_lite.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "llama_cpp", "numpy", "pydantic", "datasets", "rich"} & set(loaded)
