"""File systems that refuse what some do, as code that comes before a program: each of its processes has its own.

Nothing of the product is replaced, only what the system would answer.
"""

from __future__ import annotations

REFUSALS = {
    "hard links": """
def link(source, out, **options):
    raise OSError(errno.EPERM, "Operation not permitted", out)
os.link = link
""",
    "fsync of folders": """
fsync = os.fsync
def of_files(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "Invalid argument")
    fsync(fd)
os.fsync = of_files
""",
    "locks": """
def flock(fd, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
""",
    "modes": """
def chmod(path, mode, **options):
    raise PermissionError(errno.EPERM, "Operation not permitted", path)
os.chmod = chmod
""",
    "free bytes": """
statvfs = os.statvfs
def of_quotas(path):
    found = list(statvfs(path))
    found[3] = found[4] = 0
    return os.statvfs_result(found)
os.statvfs = of_quotas
""",
}
"""What is refused -> how Python is told so."""


def refusing(*names: str) -> str:
    """The code that comes first."""
    return "import errno, fcntl, os, stat\n" + "".join(REFUSALS[name] for name in names)
