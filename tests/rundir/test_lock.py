"""Who works in a run folder, with locks and on file systems that know none."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest

from genius_lite.errors import UserError
from genius_lite.rundir.folder import open_folder
from genius_lite.rundir.lock import LOCK, MARKER, hold, in_use
from tests.support.faults import GONE, refuse


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def no_locks(request, monkeypatch) -> None:
    """A file system without locks."""
    monkeypatch.setattr(fcntl, "flock", refuse(request.param))


def test_one_process_at_a_time(tmp_path):
    assert not in_use(tmp_path)
    with hold(tmp_path):
        assert in_use(tmp_path)
        with pytest.raises(UserError, match="in use by another process"), hold(tmp_path):
            pass
    assert not in_use(tmp_path)
    with hold(tmp_path):
        pass


def test_who_looks_writes_nothing_and_keeps_nobody_from_starting(tmp_path):
    """Of 2,924 starts under a tight loop of looks 829 were refused."""
    code = "import sys\nfrom pathlib import Path\nfrom genius_lite.rundir.lock import in_use\nprint(flush=True)\n"
    looking = subprocess.Popen(
        [sys.executable, "-c", f"{code}while True: in_use(Path(sys.argv[1]))", str(tmp_path)], stdout=subprocess.PIPE
    )
    assert looking.stdout
    looking.stdout.readline()
    assert [*tmp_path.iterdir()] == []
    try:
        for _ in range(100):
            with hold(tmp_path):
                pass
    finally:
        looking.kill()
        looking.communicate()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    assert not in_use(tmp_path)
    assert (tmp_path / "precious").read_text() == "x"


def test_without_locks_a_file_says_who_is_there(tmp_path, no_locks):
    with hold(tmp_path):
        assert in_use(tmp_path)
        process, host, *_ = (tmp_path / MARKER).read_text().split()
        assert (host.partition("?")[0], int(process)) == (platform.node(), os.getpid())
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .* rm .*{MARKER}"):
            hold(tmp_path).__enter__()
    assert not in_use(tmp_path)
    assert not (tmp_path / MARKER).exists()


def test_without_locks_a_process_of_this_machine_that_was_killed_is_followed(tmp_path, no_locks):
    code = "import os, sys, filelock\nlock = filelock.SoftFileLock(sys.argv[1])\nlock.acquire()\nos._exit(1)"
    for again in (False, True):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / MARKER)])
        if again:  # as in a container, where numbers are the same each time
            _, rest = (tmp_path / MARKER).read_text().split("\n", 1)
            (tmp_path / MARKER).write_text(f"{os.getpid()}\n{rest}")
        assert not in_use(tmp_path)
        with hold(tmp_path):
            assert in_use(tmp_path)
        assert not (tmp_path / MARKER).exists()


def test_without_locks_another_machine_is_asked_about(tmp_path, no_locks):
    (tmp_path / MARKER).write_text(f"{GONE}\nanother\n")
    assert in_use(tmp_path)
    with pytest.raises(UserError, match=f"process {GONE} on another.*rm {tmp_path}/{MARKER}"):
        hold(tmp_path).__enter__()
    (tmp_path / MARKER).write_bytes(b"12")  # a power cut
    with pytest.raises(UserError, match=f"in use by another process.*rm {tmp_path}/{MARKER}"):
        hold(tmp_path).__enter__()


def test_without_locks_a_folder_is_a_run_folder(tmp_path, no_locks):
    for _ in range(2):
        with open_folder(tmp_path / "run", {"rounds": 1}):
            pass
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {LOCK, "recipe.json"}
