"""The processor cores and the memory that this process may use, and holds."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from genius_lite.errors import UserError

T = TypeVar("T")

SHORT_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""What GNU OpenMP reads when it is loaded; whoever sets it outside decides.

Its threads spin for about a millisecond between pieces of work, which starves them as soon as another program wants the
cores. Beside one busy process a core decoding fell to between 2 and 27 % of its quiet speed, and with a short spin it
keeps 45 %; training took 4.7 times as long, and takes 2.4 times. On a quiet machine nothing is lost.
"""

NO_MEMORY = re.compile(
    r"out of memory|not enough memory|Invalid buffer size"  # torch: of a GPU, of Windows, of Metal
    r"|can't allocate|[Cc]annot allocate memory|[Uu]nable to mmap"  # torch and libc, of the main memory; safetensors
    r"|std::bad_alloc"  # libraries in C++, while they are imported
)
"""What libraries say where they get no memory, and raise no MemoryError."""

_STACK_UNIT = 1 << 20  # bytes, of which systems want a multiple
_WINDOWS_STACK = (1 << 28) - _STACK_UNIT  # bytes, the most that CPython gives a thread there
_M_MMAP_THRESHOLD = -3  # malloc.h
_UNLIMITED = 1 << 60  # bytes; version 1 of control groups writes the largest number of pages where it has no limit
_MOUNT, _PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """Count the processor cores that this process may use; of a container's quota (`docker --cpus`) the whole ones.

    More threads than that are stopped together, many times a second, as soon as they have used it up.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = processor_share()
    return own if share is None else min(own, max(1, int(share)))


def cpu_name() -> str:
    """Return the processor's brand name where the system tells it, else its architecture."""
    return _proc("cpuinfo", "model name") or platform.processor() or platform.machine()


def _proc(file: str, name: str) -> str | None:
    """Look up the first line `NAME: VALUE` of a file in Linux's /proc; None where there is none."""
    path = Path("/proc", file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def free_memory() -> int:
    """Count the bytes that can be used without swapping, and without breaking a container's limit."""
    free, left = psutil.virtual_memory().available, memory_left()
    return free if left is None else min(free, left)


def processor_share(mount: Path = _MOUNT, process: Path = _PROCESS) -> float | None:
    """Return how many processors' time this process may take; None where nothing limits it.

    Docker, SLURM and systemd limit a control group (Linux, both versions), which may be the process's own or any above
    it: the tightest quota counts.
    """
    shares = []
    for group in _groups("cpu", mount, process):
        quota, period = (_numbers(group / "cpu.max") or [None, None])[:2]
        if period is None:
            quota, period = (next(iter(_numbers(group / f"cpu.cfs_{name}_us")), None) for name in ("quota", "period"))
        if quota is not None and period and quota > 0:
            shares.append(quota / period)
    return min(shares, default=None)


def memory_left(mount: Path = _MOUNT, process: Path = _PROCESS) -> int | None:
    """Return the bytes that this process may still take by its control groups' limits; None where there is none."""
    left = map(_left, _groups("memory", mount, process))
    return min((each for each in left if each is not None), default=None)


def _left(group: Path) -> int | None:
    for limit, used, caches in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        allowed, taken = _numbers(group / limit), _numbers(group / used)
        if allowed and taken and allowed[0] is not None and allowed[0] < _UNLIMITED:
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return allowed[0] - (taken[0] or 0) + int(stat.get(caches, 0))  # files only read can be forgotten
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


def spare_memory() -> None:
    """Have malloc (glibc's) give every large block back as soon as it is freed, for the rest of this process.

    By itself it keeps freed blocks of up to 32 MB for later, and seldom finds a use for them. With activations computed
    twice (Qwen2.5-0.5B, 512 tokens, bf16), what training takes besides the weights fell from 1.15 to 0.39 GB; it took a
    quarter more time, because the kernel hands out cleared memory.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def give_memory_back() -> None:
    """Return what was freed to the system and the GPU, where malloc (glibc's) and torch keep it for later.

    After an import that was 0.3 GB of SmolLM2-135M and 1.1 GB of Qwen2.5-0.5B, beside which the sampler then runs.
    """
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)  # models are full of circles
    trim_heap()


def trim_heap() -> None:
    """Return what malloc (glibc's) holds free, without looking for what might be freed first: some milliseconds."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None


def peak_memory() -> int:
    """Return the most bytes that this process ever held in memory."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    # Linux's rusage counts what the parent held when it started this process, too.
    if peak := _proc("self/status", "VmHWM:"):
        return int(peak.split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there


def memory_held() -> tuple[int, int, int]:
    """Count the bytes that this process holds in memory now, that its children hold together, and that there are."""
    own, children = psutil.Process(), 0
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            children += child.memory_info().rss
    return own.memory_info().rss, children, psutil.virtual_memory().total


def with_stack(size: int, work: Callable[[], T]) -> T:
    """Do some work in a thread with a stack of so many bytes, which take memory only as they are used.

    Raises:
        UserError: Windows gives no thread as many.
    """
    from concurrent.futures import ThreadPoolExecutor

    if sys.platform == "win32" and size > _WINDOWS_STACK:
        raise UserError(f"a text that takes a stack of {size / 1e6:.0f} MB is too long for Windows; leave it out")
    before = threading.stack_size(-(-size // _STACK_UNIT) * _STACK_UNIT)
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(work)
        finally:
            threading.stack_size(before)
        return future.result()
