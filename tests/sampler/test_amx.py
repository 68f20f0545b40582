"""What a build with AMX is tried with. The build that runs these tests may have it, working or broken, or not."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from genius_lite.sampler import llama

DIES = (sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})")


def test_a_model_is_tried_in_a_process_of_its_own():
    command = [sys.executable, "-P", "-m", "genius_lite.sampler.llama"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode == 0) != llama.amx_broken(), ended.stderr


def test_other_logits_are_not_taken_for_working(monkeypatch):
    true = llama._logits  # never repacked here: broken kernels would take the tests along
    monkeypatch.setattr(llama, "_logits", lambda path, *, repack: true(path, repack=False) * (1 + repack / 20))
    with pytest.raises(SystemExit) as ended:
        llama.main()
    assert ended.value.code == 3
    monkeypatch.setattr(llama, "_logits", lambda path, *, repack: true(path, repack=False) / (not repack))
    with pytest.raises(SystemExit) as ended, pytest.warns(RuntimeWarning):
        llama.main()
    assert ended.value.code == 3


def test_what_dies_is_broken_until_llama_cpp_is_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr("genius_lite.measurements._build", lambda: [("libggml-cpu.so", 1_600_000, 1)])
    assert not llama.amx_works(DIES)
    assert not llama.amx_works((sys.executable, "-c", "")), "it was tried"
    monkeypatch.setattr("genius_lite.measurements._build", lambda: [("libggml-cpu.so", 1_600_000, 2)])
    assert llama.amx_works((sys.executable, "-c", ""))
    assert llama.amx_works(DIES), "remembered"

    monkeypatch.setattr(llama.llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | AMX_INT8 = 1 | ")
    monkeypatch.setattr(llama, "amx_works", lambda: False)
    assert llama.amx_broken()
    monkeypatch.setattr(llama.llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | ")
    assert not llama.amx_broken(), "nothing to break"


@pytest.mark.parametrize("code", ["raise OSError('no room')", "import os; os.kill(os.getpid(), 9)"])
def test_what_says_nothing_of_amx_is_not_remembered(code, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert not llama.amx_works((sys.executable, "-c", code))
    assert llama.amx_works((sys.executable, "-c", ""))
