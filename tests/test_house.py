"""The house rules that a machine can check: imports only go down, files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import genius_lite

ROOT = Path(genius_lite.__file__).parent
LAYERS = (
    ("errors", "records"),
    ("results",),
    ("progress", "text", "hardware"),
    ("rundir", "recipe"),
    ("data", "measurements"),
    ("sampler", "learner"),
    ("foresight", "weights"),
    ("machine",),
    ("evaluate",),
    ("report",),
    ("export", "cluster"),
    ("pipeline",),
    ("plan",),
    ("run", "init", "doctor"),
    ("cli",),
    ("__main__", "__init__"),
)
"""From the ground up. What stands in one layer does not import its neighbours, nor what is above."""

LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
FILES = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file for file in sorted(ROOT.rglob("*.py"))}
MOST_ROOMS = 25


def _room(name: str) -> str:
    return name.split(".")[1]


def _imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in found if name in FILES} | {
        f"{name}.__init__" for name in found if f"{name}.__init__" in FILES and name != "genius_lite"
    }


ROOMS = {_room(name) for name in FILES} - {"__main__", "__init__"}
IMPORTS = {name: _imported(file) - {name} for name, file in FILES.items()}


def test_every_file_has_a_layer():
    assert {_room(name) for name in FILES} <= set(LAYER)


def test_imports_only_go_down():
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if _room(other) != _room(name) and LAYER[_room(other)] >= LAYER[_room(name)]
    ]
    assert upward == []


def test_no_file_imports_itself_by_way_of_others(capsys):
    order = tuple(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names the circle
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[other] for other in IMPORTS[name]), default=0)
    deepest = max(depth.values())
    with capsys.disabled():
        print(f" {len(ROOMS)} rooms, {len(FILES)} files, {deepest} deep")
    assert len(ROOMS) <= MOST_ROOMS
    assert f"{len(ROOMS)} rooms, {deepest} files deep" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_files_stay_small():
    assert [name for name, file in FILES.items() if len(file.read_text().splitlines()) > 300] == []


def test_no_test_imports_another():
    """What they share lies in tests/support, or beside them under a name of its own."""
    shared = re.compile(r"^(from|import) tests\.(\w+\.)*test_", re.MULTILINE)
    tests = (ROOT.parent / "tests").rglob("*.py")
    assert [str(file) for file in tests if shared.search(file.read_text(encoding="utf-8"))] == []


def test_nothing_that_is_read_can_run_code():
    """No pickle, no code of a repository's own; data from `torch.load` and `np.load` is data only."""
    assert [found for file in FILES.values() for found in _runs_code(file)] == []


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


def test_the_map_has_a_line_for_every_file():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Two ideas")[0]
    named, room = set[str](), ""
    for line in (line for line in tree.splitlines() if line.startswith("    ") and "->" not in line):
        names = re.findall(r"(?<!\S)[a-z_]+(?:\.py|/)(?!\S)", line)
        if not line.startswith("      "):
            room = names[0] if names[0].endswith("/") else ""
        named |= {f"{room if line.startswith('      ') else ''}{name}" for name in names if name.endswith(".py")}
    files = {str(file.relative_to(ROOT)) for file in FILES.values() if not file.name.startswith("__")}
    assert named == files


def test_the_image_for_a_gpu_names_its_architectures():
    """While it is built none is seen, of which `native` would be made."""
    cuda = [line for line in (ROOT.parent / "Dockerfile").read_text().splitlines() if "GGML_CUDA=on" in line]
    assert cuda and all("CMAKE_CUDA_ARCHITECTURES=" in line for line in cuda)


def test_no_text_sends_users_to_the_package_index_for_this_project():
    """There `genius-lite` is a stranger's package."""
    top = ROOT.parent
    texts = [
        top / "README.md",
        top / "Dockerfile",
        *(top / "docs").rglob("*.md"),
        *ROOT.rglob("*.py"),
        *(file for ending in ("md", "yaml", "py", "sh") for file in (top / "recipes").rglob(f"*.{ending}")),
    ]
    stranger = re.compile(r"pip install [^\n.]*\bgenius-lite\b")
    assert [str(file) for file in texts if file.is_file() and stranger.search(file.read_text(encoding="utf-8"))] == []
