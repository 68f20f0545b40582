"""Disks, caches and temporary space as they are."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genius_lite import measurements
from genius_lite.errors import UserError
from genius_lite.plan.history import Decode
from genius_lite.rundir import disk
from genius_lite.rundir.disk import UNTOLD, cache_folder, free_disk, put, scratch, sync, writing_to
from genius_lite.rundir.folder import RunDir
from tests.support.faults import GONE, refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_is_used_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    sync(tmp_path)
    put(tmp_path / "x", b"1")
    assert RunDir(tmp_path).build("stage", lambda out: out.write_text("x")).read_text() == "x"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_to_flush_is_not(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(OSError, match="of the test"):
        put(tmp_path / "x", b"1")
    assert [*tmp_path.iterdir()] == []


def test_what_is_put_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    order = []
    own_sync, own_replace = disk.sync, Path.replace
    monkeypatch.setattr(disk, "sync", lambda path: order.append(f"sync {path.name}") or own_sync(path))
    monkeypatch.setattr(Path, "replace", lambda path, to: order.append("name") or own_replace(path, to))
    put(tmp_path / "x", b"new")
    assert order == ["sync x.partial", "name", f"sync {tmp_path.name}"]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"new")]


def test_what_is_put_goes_through_no_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "new.partial").symlink_to(tmp_path / "precious")
    put(tmp_path / "new", b"1")
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert (tmp_path / "new").read_bytes() == b"1" and not (tmp_path / "new").is_symlink()


def test_a_disk_that_says_nothing_of_its_free_bytes_is_tried(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert free_disk(tmp_path / "not" / "there") == UNTOLD
    with scratch(tmp_path, 10**15, "it"):
        pass
    monkeypatch.setattr(os, "fsync", refuse(errno.EDQUOT))
    assert free_disk(tmp_path) == 0
    with pytest.raises(UserError, match=r"0\.0 GB are free"), scratch(tmp_path, 1, "it"):
        pass


LIMITED = """
import resource, sys
from pathlib import Path
from genius_lite.rundir.disk import writing_to
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with writing_to(folder):
        exec(sys.argv[2])
except OSError as e:
    print(e.errno, e.filename, type(e.__cause__).__name__)
"""
WRITERS = {
    "torch.save": "import torch; torch.save(torch.zeros(10_000), folder / 'x')",
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'x': torch.zeros(10_000)}, folder / 'x')",
    "numpy": "import numpy; numpy.zeros(10_000).tofile(folder / 'x')",
    "nothing but words": "raise RuntimeError('llama_model_quantize failed with code 1')",
}


@pytest.mark.parametrize("library", WRITERS)
def test_a_disk_that_takes_no_more_speaks_for_itself(tmp_path, library):
    command = [sys.executable, "-c", LIMITED, str(tmp_path), WRITERS[library]]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    number, where, cause = ended.stdout.split()
    assert (int(number), where) == (errno.EFBIG, str(tmp_path))
    assert cause != "NoneType"


def test_other_faults_stay_what_they_are(tmp_path):
    for fault in (RuntimeError("a"), UserError("b"), OSError(errno.ENOSPC, "c")):
        with pytest.raises(type(fault)) as raised, writing_to(tmp_path):
            raise fault
        assert raised.value is fault


def test_temporary_space_goes_with_the_block_and_after_a_kill(tmp_path):
    name = disk.re.sub(r"\W", "_", disk.platform.node())[:64]
    host = name + disk._process_numbering()
    killed = tmp_path / f".genius-lite-tmp-{host}-{GONE}-abc"
    others = {tmp_path / f".genius-lite-tmp-{other}-{GONE}-abc" for other in ("another", f"{name}4026")}
    for folder in (killed, *others):
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"x")
    with scratch(tmp_path) as own:
        assert own.parent == tmp_path
        assert not killed.exists()
        with scratch(tmp_path) as second:
            assert own.exists()
            assert second != own
    assert {*tmp_path.iterdir()} == others, "a process of another machine, or container, may go on"


def test_a_temporary_folder_with_the_number_of_no_process_is_cleared_away(tmp_path):
    """Whoever may write to /tmp could end every run with one; it was an OverflowError."""
    with scratch(tmp_path) as made:
        name = made.name
    left = tmp_path / name.replace(f"-{os.getpid()}-", f"-{'9' * 30}-")
    left.mkdir()
    with scratch(tmp_path):
        assert not left.exists()


def test_temporary_space_is_reckoned_beforehand(tmp_path):
    with pytest.raises(UserError, match=r"the plan needs 1000000\.0 GB"), scratch(tmp_path, 10**15, "the plan"):
        pass
    assert [*tmp_path.iterdir()] == []


def test_temporary_space_is_where_the_folder_will_be(tmp_path):
    with scratch(tmp_path / "not" / "there") as folder:
        assert folder.parent == tmp_path
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "genius-lite"


@pytest.mark.parametrize("cache_home", ["/proc/nobody", "/dev/null"])
def test_a_cache_that_cannot_be_made_is_done_without(monkeypatch, cache_home):
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    measurements.remember("x", 1, Decode(1.0, 2.0, 3.0, 4.0))
    assert measurements.recall("x", 1, Decode) is None
    with scratch() as folder:
        assert folder.is_dir()


def test_a_cache_that_nobody_may_read_is_empty(cache, monkeypatch):
    measurements.remember("x", 1, Decode(1.0, 2.0, 3.0, 4.0))
    assert measurements.recall("x", 1, Decode) == Decode(1.0, 2.0, 3.0, 4.0)
    monkeypatch.setattr(Path, "read_bytes", refuse(errno.EACCES))
    assert measurements.recall("x", 1, Decode) is None


def test_users_who_share_a_place_have_a_folder_each(cache, monkeypatch):
    cache.mkdir(parents=True)
    assert cache_folder() == cache
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert cache_folder() == cache.with_name("genius-lite-54321")


def test_without_a_home_the_cache_is_a_temporary_folder(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", refuse(KeyError))
    monkeypatch.chdir(tmp_path)
    assert cache_folder().is_absolute()
    measurements.remember("x", "without a home", Decode(1.0, 2.0, 3.0, 4.0))
    assert [*tmp_path.iterdir()] == []


RACING = """
import sys, msgspec
from genius_lite import measurements
class Number(msgspec.Struct): n: int
for n in range(150):
    measurements.remember("race", 1, Number(n))
    assert measurements.recall("race", 1, Number) is not None
"""


def test_processes_that_measure_at_once_all_go_on(cache):
    """Case 36: 6 % of the writes were lost with an exception."""
    processes = [subprocess.Popen([sys.executable, "-c", RACING], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3
    assert len([*(cache / "measurements").iterdir()]) == 1


def test_on_windows_a_file_that_somebody_reads_is_waited_for(monkeypatch):
    """A virus scanner reads what is new; the run ended."""
    tries = []

    def change() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(disk, "_BETWEEN", 0.0)
    with pytest.raises(PermissionError):
        disk.settled(change)
    assert len(tries) == 1
    monkeypatch.setattr(disk.os, "name", "nt")
    disk.settled(change)
    assert len(tries) == 3


def test_a_drive_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(UserError, match=r"there is no .*; name another place"):
        disk.free_disk(Path("Z:/runs/x"))
