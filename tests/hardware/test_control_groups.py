from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genius_lite.hardware.system import memory_left, processor_share

FREE_V1 = 9223372036854771712


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")
    return folder


def found(tmp_path: Path, groups: str, files: dict[str, str]) -> tuple[float | None, int | None]:
    (tmp_path / "cgroup").write_text(groups)
    mount = tree(tmp_path / "mount", files)
    return processor_share(mount, tmp_path / "cgroup"), memory_left(mount, tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("groups", "files", "share", "left"),
    [
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "7"}, None, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5, None),
        # A group above this one is limited; in the second the file systems of the host are not seen.
        ("0::/user.slice/job.scope", {"user.slice/cpu.max": "50000 100000", "user.slice/job.scope/x": ""}, 0.5, None),
        ("0::/docker/0123", {"cpu.max": "200000 100000"}, 2.0, None),
        (
            "0::/a/b",
            {
                "a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": "anon 400\ninactive_file 200",
                "a/b/memory.max": "5000", "a/b/memory.current": "100", "a/b/memory.stat": "anon 100",
            },
            None, 500,
        ),
        (
            "4:memory:/slurm/job\n2:cpu,cpuacct:/slurm/job\n1:name=systemd:/x\n0::/",
            {
                "cpu/slurm/job/cpu.cfs_quota_us": "-1", "cpu/slurm/job/cpu.cfs_period_us": "100000",
                "cpu/slurm/cpu.cfs_quota_us": "300000", "cpu/slurm/cpu.cfs_period_us": "100000",
                "memory/slurm/job/memory.limit_in_bytes": str(FREE_V1), "memory/slurm/job/memory.usage_in_bytes": "9",
                "memory/slurm/memory.limit_in_bytes": "1000", "memory/slurm/memory.usage_in_bytes": "900",
                "memory/slurm/memory.stat": "cache 3\ntotal_inactive_file 50",
            },
            3.0, 150,
        ),
    ],
)  # fmt: skip
def test_the_tightest_limit_of_a_group_or_one_above_it(tmp_path, groups, files, share, left):
    assert found(tmp_path, groups, files) == (share, left)


def test_where_there_are_no_groups(tmp_path):
    assert processor_share(tmp_path, tmp_path / "none") is None
    assert memory_left(tmp_path, tmp_path / "none") is None


QUOTA = Path("/sys/fs/cgroup/cpu")


@pytest.mark.skipif(
    not os.access(QUOTA / "cpu.cfs_quota_us", os.F_OK) or not os.access(QUOTA, os.W_OK),
    reason="needs version 1 of control groups, and leave to make one",
)
def test_the_kernels_own_quota_is_read():
    group = QUOTA / f"genius-lite-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        code = (
            f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "from genius_lite.hardware.system import cores; print(cores())"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == "1"
    finally:
        group.rmdir()
