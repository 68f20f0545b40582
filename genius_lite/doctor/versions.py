"""The versions that everything was tested with, of what `pyproject.toml` asks for; `constraints.txt` pins the same."""

from __future__ import annotations

import importlib.metadata

TESTED = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
    "filelock": "4.2.12",
    "gguf": "0.19.0",
    "httpx2": "2.16.2",
    "huggingface_hub": "2.4.0",
    "jinja2": "3.1.6",
    "llama-cpp-python": "0.3.36",
    "msgspec": "0.22.0",
    "numpy": "2.4.6",
    "peft": "0.21.0",
    "platformdirs": "4.14.7",
    "psutil": "7.2.2",
    "pydantic": "2.14.3",
    "pyyaml": "6.0.3",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "typer": "0.29.2",
}


def installed() -> dict[str, str | None]:
    """The version of each that is there, None of what is not."""
    return {name: _version(name) for name in TESTED}


def least() -> dict[str, str]:
    """The requirement of each, as `>=2.10`, where this package's own metadata is there."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("genius-lite") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier) for r in wanted if r.marker is None and r.name in TESTED}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
