"""What the control groups of this process leave it of processor time and memory (Linux, both versions).

Docker, SLURM and systemd limit a group, which may be the process's own or any above it; the kernel counts all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # bytes; version 1 writes the largest number of pages where it has no limit
_MOUNT, _PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def processor_share(mount: Path = _MOUNT, process: Path = _PROCESS) -> float | None:
    """Return how many processors' time this process may take, by the tightest quota; None where there is none."""
    shares = []
    for group in _groups("cpu", mount, process):
        quota, period = (_numbers(group / "cpu.max") or [None, None])[:2]
        if period is None:
            quota, period = (next(iter(_numbers(group / f"cpu.cfs_{name}_us")), None) for name in ("quota", "period"))
        if quota is not None and period and quota > 0:
            shares.append(quota / period)
    return min(shares, default=None)


def memory_left(mount: Path = _MOUNT, process: Path = _PROCESS) -> int | None:
    """Return the bytes that this process may still take, by the tightest limit; None where there is none."""
    return min(
        (left for group in _groups("memory", mount, process) if (left := _left(group)) is not None), default=None
    )


def _left(group: Path) -> int | None:
    for limit, used, caches in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        allowed, taken = _numbers(group / limit), _numbers(group / used)
        if allowed and taken and allowed[0] is not None and allowed[0] < _UNLIMITED:
            lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
            # Files that were only read can be forgotten.
            forgotten = next((int(value) for name, value in lines if name == caches), 0)
            return allowed[0] - (taken[0] or 0) + forgotten
    return None


def _groups(controller: str, mount: Path, process: Path) -> Iterator[Path]:
    """Yield the groups that this process is in for a controller: its own and those above, as far as they are seen.

    In a container the path is often that of the host, of which only the container's own group is mounted.
    """
    if not process.is_file():
        return
    for line in process.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top = mount
        elif controller in controllers.split(","):
            top = mount / controller  # a link where several are mounted together, as cpu,cpuacct
        else:
            continue
        own = top / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(top) and group.is_dir())


def _numbers(file: Path) -> list[int | None]:
    """Read the numbers of a file, None for `max`; nothing where there is no such file."""
    words = file.read_text().split() if file.is_file() else []
    return [int(word) if word.lstrip("-").isdecimal() else None for word in words]
