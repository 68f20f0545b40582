"""Broken GGUFs of fixed seeds, and those that once did harm; `python -m tests.faults.hostile` tries any number."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter

import pytest

from genius_lite.errors import UserError
from genius_lite.weights import untrusted
from genius_lite.weights.untrusted import load_untrusted
from tests.conftest import FORKED_HELPERS
from tests.faults.hostile import Child, examined
from tests.faults.mutate import MUTATIONS, mutant
from tests.faults.regressions import ACCEPTED, CASES, regression
from tests.faults.sound import bases

pytestmark = FORKED_HELPERS

_ALL = len(MUTATIONS)
# Each mutation on the Llama, every fourth one on the Qwen2, and every fourth of the others on the quantized model.
SEEDS = [seed for seed in range(3 * _ALL) if seed < _ALL or seed % _ALL % 4 == seed // _ALL]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return bases(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def outcomes(sound, tmp_path_factory):
    """What became of every file, by seed or name; all in one process, unless one ends it."""
    mutants = [*(mutant(seed, sound) for seed in SEEDS), *(regression(name, sound) for name in CASES)]
    found = examined(mutants, sound, tmp_path_factory.mktemp("hostile"))
    return {broken.what if broken.seed < 0 else broken.seed: (broken, outcome) for broken, outcome in found}


def test_broken_files_are_refused_in_one_clear_line_or_work(outcomes):
    found = [outcomes[seed] for seed in SEEDS]
    assert [(b.seed, b.what, o) for b, o in found if o["outcome"] not in ("refused", "accepted")] == []
    counts = Counter(o["outcome"] for _, o in found)
    assert counts["refused"] > len(SEEDS) / 2
    assert counts["accepted"] >= len(SEEDS) / 20, "some mutations do no harm, and some files have none"
    assert {b.what.partition(": ")[2].partition(",")[0] for b, _ in found} == set(MUTATIONS)


@pytest.mark.parametrize("name", CASES)
def test_what_once_did_harm(name, outcomes):
    expected, (_, found) = CASES[name][2], outcomes[name]
    if expected == ACCEPTED:
        assert found["outcome"] == "accepted", found
    else:
        assert (found["outcome"], expected in found["reason"]) == ("refused", True), found


def test_a_file_that_llama_cpp_dies_of_is_one_line_and_exit_code_2(sound, tmp_path):
    name = "llama.cpp asserts on experts that are never used"
    path = regression(name, sound).write(tmp_path / "broken")
    command = [sys.executable, "-c", "from genius_lite.cli import main; main()", "chat", str(path)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}: broken GGUF: llama.cpp dies of it (SIGABRT, GGML_ASSERT(")
    assert result.stderr.count("\n") == 1


def test_what_llama_cpp_takes_too_long_for_is_refused(tiny_llama, tmp_path, monkeypatch):
    own = shutil.copyfile(tiny_llama, tmp_path / "own.gguf")  # which llama.cpp has not survived yet
    monkeypatch.setattr(untrusted, "_PATIENCE", 0.01)
    with pytest.raises(UserError, match=r"llama\.cpp does not finish loading it within 0 s"):
        load_untrusted(own)


def test_a_crash_is_put_down_to_its_file_and_the_rest_goes_on(tmp_path, monkeypatch):
    """The harness itself, with a process that dies of one name and hangs at another."""
    code = (
        "import os, sys, time\nprint('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'dies' in line: os.abort()\n"
        "    if 'hangs' in line: time.sleep(60)\n"
        '    print(\'{"outcome": "accepted"}\', flush=True)\n'
    )
    monkeypatch.setattr("tests.faults.hostile.PATIENCE", 1)
    child = Child(tmp_path, tmp_path)
    child._command = [sys.executable, "-c", code]
    found = [child.examine(tmp_path / name) for name in ("good", "dies", "good", "hangs", "good")]
    child.close()
    assert [f["outcome"] for f in found] == ["accepted", "crash", "accepted", "crash", "accepted"]
    assert "ended with -6" in found[1]["reason"]
    assert "no answer" in found[3]["reason"]
