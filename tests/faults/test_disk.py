"""A disk that is full, or cannot be written: one line, and the run goes on once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pyarrow
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from genius_lite.cli.surroundings import fault_line
from genius_lite.errors import NonFiniteError
from genius_lite.records import Rollout
from genius_lite.rundir.lines import read_records
from tests.faults.kills import QUERIES, RECIPE, SEARCHED
from tests.support import forked, warm
from tests.support.cli import genius

COMMAND = ("run", "r.yaml", "--out", "disk/run")


def _mount(options: str, where: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small file system of its own; only root may make one."""
    where = tmp_path / "disk"
    where.mkdir()
    if sys.platform != "linux" or os.geteuid() or _mount("size=20m", where).returncode:
        pytest.skip("needs root on Linux, and a system that lets it mount")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)  # a failed writer may hold a file open


@pytest.fixture
def project(tmp_path, tiny_llama) -> Path:
    (tmp_path / "tiny.gguf").symlink_to(tiny_llama)
    (tmp_path / "q.txt").write_text("\n".join(QUERIES))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def _run(project: Path) -> subprocess.CompletedProcess[str]:
    return genius(*COMMAND, cwd=project)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(project, disk):
    # What is checked beforehand fits; then somebody else fills the disk.
    assert _fill_while_it_runs(project, disk).returncode == 2
    done = {p: p.read_bytes() for p in (disk / "run").rglob("rollouts.jsonl")}
    (disk / "filler").unlink()
    result = _run(project)
    assert result.returncode == 0, result.stderr
    for log, before in done.items():
        assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    rollouts = read_records(disk / "run" / "round-1" / "rollouts.jsonl", Rollout)
    assert sorted(r.query.prompt for r in rollouts) == sorted(SEARCHED)
    assert not list(disk.rglob("*.partial"))


def _fill_while_it_runs(project: Path, disk: Path) -> subprocess.CompletedProcess:
    command = forked.command(warm.server(), "genius_lite", *COMMAND)
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (disk / "run" / "hf-checkpoint").exists():
        assert process.poll() is None, process.communicate()
    _fill(disk)
    out, err = process.communicate(timeout=300)
    assert err.count("\n") == 1, err
    assert err.startswith("error: no space left")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_cannot_be_written_is_one_line(project, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    result = _run(project)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "read-only" in result.stderr.lower()


@pytest.mark.parametrize(
    "write",
    [
        lambda file: save_file({"x": torch.zeros(10_000)}, file),
        lambda file: np.zeros(10_000).tofile(file),
        lambda file: Path(file).write_bytes(bytes(10_000)),
        lambda file: pyarrow.OSFile(file, "wb").write(bytes(10_000)),
        lambda file: _gguf(file),
        lambda file: Tokenizer(WordLevel({"a": 0}, "a")).save(file),
    ],
    ids=["safetensors", "numpy", "Python", "pyarrow", "gguf", "tokenizers"],
)
def test_what_libraries_say_of_a_full_disk_is_understood(disk, write):
    _fill(disk)
    with pytest.raises(Exception) as raised:
        write(str(disk / "x"))
    line = fault_line(ExceptionGroup("of a task group", [ValueError("x"), ExceptionGroup("inner", [raised.value])]))
    assert line
    assert "no space left on device" in line
    assert "make room, and the same command goes on" in line


def test_other_exceptions_are_none_of_the_machine():
    for fault in (
        ValueError("x"),
        FileNotFoundError(errno.ENOENT, "x"),
        RuntimeError("os error of a kind"),
        KeyError(28),
    ):
        assert fault_line(fault) is None
        assert fault_line(ExceptionGroup("x", [fault])) is None
    assert fault_line(MemoryError())


@pytest.mark.parametrize(
    "said",
    [
        "std::bad_alloc",
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
        "MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)",
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    ],
    ids=["C++", "CUDA", "Metal", "Windows"],
)
def test_what_torch_says_of_no_memory_is_understood(said):
    assert "plan says what a run takes" in (fault_line(RuntimeError(said)) or "")


def test_a_library_that_finds_no_memory_is_of_the_machine():
    """As torch's under `ulimit -v 500000`; it was a traceback."""
    fault = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "raise `ulimit -v`" in (fault_line(fault) or "")


def test_training_that_diverged_is_a_line_as_the_documentation_says():
    """It was a traceback."""
    diverged = NonFiniteError("update 3: the loss of query q1, step 0 is not finite; lower learner.lr")
    assert fault_line(diverged) == fault_line(ExceptionGroup("of a task group", [diverged])) == str(diverged)


def _gguf(file: str) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("x", np.zeros((100, 100), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
