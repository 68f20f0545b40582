"""What doctor says of a part of this machine, and how llama.cpp was built.

Does it load, what does it lack of this processor and GPU, and what builds it better?
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
from packaging.utils import canonicalize_name

from genius_lite.data.sandbox import attempt
from genius_lite.hardware.gpus import Gpu, gpus

Level = Literal["stops", "slows", "note"]

# Linux's name of an instruction set -> llama.cpp's.
_FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
_CPU = Path("/proc/cpuinfo")
_SEEN_BY = {"NVIDIA": "nvidia-smi", "AMD": "rocminfo"}
_SEEN = "see whether this machine has one, and its driver"
_BACKENDS = {"NVIDIA": "CUDA", "AMD": "HIP", "Apple": "Metal"}  # by who made the GPU
_PATIENCE = 120  # seconds that llama.cpp may take to load
_ASKED = "import llama_cpp as l; l.llama_print_system_info(); l.llama_supports_gpu_offload()"  # all that is asked below
_LOAD = (sys.executable, "-P", "-c", _ASKED)
_ELSEWHERE = "LLAMA_CPP_LIB_PATH"  # where llama-cpp-python takes its libraries from, if not from its own folder
_ILLEGAL = (-signal.SIGILL, 0xC000001D)  # how a process ends that comes to an instruction the processor has not


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and a shell command that mends it (or a sentence, where none does).

    `stops`: a run cannot work; `slows`: it can, but with less speed or room; `note`: good to know.
    """

    level: Level
    what: str
    mend: str


class Finding(msgspec.Struct, frozen=True):
    """A line about a part of this machine, empty where there is nothing to say but a problem."""

    label: str
    line: str
    problem: Problem | None = None


def look_at_llama(version: str, maker: str) -> Iterator[Finding]:
    """Judge the llama.cpp that is installed, on a machine with a GPU of some maker ("" without one)."""
    flags = cpu_flags(_CPU)
    if fault := unloadable():
        packages = Path(sysconfig.get_path("purelib"))
        return broken(version, fault, maker, packages, flags, _ELSEWHERE in os.environ)
    import llama_cpp as library

    from genius_lite.sampler.llama import amx_broken

    features = re.findall(r"(\w+) = [1-9]\d*", library.llama_print_system_info().decode())
    return llama_cpp(version, features, flags, gpus(), maker, bool(library.llama_supports_gpu_offload()), amx_broken())


def unloadable(command: Sequence[str] = _LOAD) -> str:
    """Return why llama.cpp does not load, "" where it does: tried in a process of its own, whose end it may be."""
    try:
        ended = attempt(command, _PATIENCE)
    except subprocess.TimeoutExpired:
        return f"it takes more than {_PATIENCE} s"
    if ended.returncode in _ILLEGAL:
        return "it was compiled for another processor, and comes to an instruction that this one does not have"
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return "" if ended.returncode == 0 else said[-1] if said else f"exit code {ended.returncode}"


def broken(
    version: str, fault: str, maker: str, packages: Path, cpu: Sequence[str] = (), elsewhere: bool = False
) -> Iterator[Finding]:
    """Judge a llama.cpp that does not load.

    Args:
        packages: where Python's packages lie. Torch's bring CUDA's libraries along, where the loader does not look.
        cpu: as for `llama_cpp`.
        elsewhere: its libraries are taken from where a variable says, which no other build of it changes.
    """
    mend = f"unset {_ELSEWHERE}" if elsewhere else _rebuild_for(cpu, maker)
    lost = re.search(r"(\S+\.so[.\d]*): cannot open shared object file", fault)
    if lost and (found := sorted({str(file.parent) for file in packages.glob(f"nvidia/*/lib/{lost[1]}")})):
        folders = dict.fromkeys([*found, *map(str, sorted(packages.glob("nvidia/*/lib")))])
        mend = f"export LD_LIBRARY_PATH={':'.join(folders)}"
    yield Finding("llama.cpp", f"{version}, does not load", Problem("stops", f"llama.cpp does not load: {fault}", mend))


def llama_cpp(
    version: str, features: Sequence[str], cpu: Sequence[str], cards: Sequence[Gpu], maker: str, offloads: bool,
    amx_broken: bool,
) -> Iterator[Finding]:  # fmt: skip
    """Judge how llama.cpp was built: with which features, by its own names, and whether for some GPU (`offloads`).

    Args:
        cpu: instruction sets of the processor, as Linux names them.
        maker: of the machine's GPU, "" without one.
        amx_broken: it has AMX kernels that do not work, see `sampler/llama.py`.
    """
    yield Finding("llama.cpp", f"{version}, built with {' '.join(features)}; {listed(cards) or 'no GPU'}")
    mend = _rebuild_for(cpu, maker)
    if missing := [name for flag, name in _FEATURES.items() if flag in cpu and name not in features]:
        what = f"llama.cpp was built without {', '.join(missing)}, which this CPU has"
        yield Finding("llama.cpp", "", Problem("slows", what, mend))
    if cpu and (more := [name for flag, name in _FEATURES.items() if name in features and flag not in cpu]):
        what = f"llama.cpp was built with {', '.join(more)}, which this CPU does not have: it may die of it"
        yield Finding("llama.cpp", "", Problem("stops", what, mend))
    if amx_broken:
        what = "llama.cpp's AMX kernels were broken by the compiler: they are not used, and weights are not repacked"
        yield Finding("llama.cpp", "", Problem("slows", what, mend))
    if maker and not offloads:
        what = f"llama.cpp was built without {_BACKENDS[maker]}; this machine has an {maker} GPU"
        yield Finding("llama.cpp", "", Problem("slows", what, mend))
    elif offloads and not cards:
        yield Finding(
            "llama.cpp", "", Problem("slows", "llama.cpp was built for a GPU and sees none", _SEEN_BY.get(maker, _SEEN))
        )


def rebuild(*options: str) -> str:
    """Return the command that compiles the tested llama-cpp-python anew; the same in every shell."""
    flags = "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python"
    cmake = ";".join(f"-D{option}" for option in options)
    return install(f'{flags} -C cmake.args="{cmake}" llama-cpp-python=={pins()["llama-cpp-python"]}')


def _rebuild_for(cpu: Sequence[str], maker: str) -> str:
    options = ["GGML_NATIVE=on"]
    if "amx_int8" in cpu:
        # GCC 12 breaks AMX kernels unless it is told not to; and `native` takes AVX512-FP16 too, with which llama.cpp
        # 0.3.36 computes attention in half precision, heads of 64 number by number.
        wanted = [f"GGML_{name}=on" for flag, name in _FEATURES.items() if flag in cpu]
        options = ["GGML_NATIVE=off", *wanted, "GGML_AMX_TILE=on", "CMAKE_CXX_FLAGS=-fno-dse"]
    return rebuild(*options, *([f"GGML_{_BACKENDS[maker].upper()}=on"] if maker else []))


def cpu_flags(cpuinfo: Path) -> list[str]:
    """Return the instruction sets as Linux names them; elsewhere none are known."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return found.partition(":")[2].split()


def listed(cards: Sequence[Gpu]) -> str:
    """Return the names of GPUs with what is free on each."""
    return ", ".join(f"{card.name} ({card.free / 1e9:.1f} GB free)" for card in cards)


def pins() -> dict[str, str]:
    """Return the versions that everything was tested with, of constraints.txt."""
    lines = resources.files("genius_lite").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in pinned}


def install(arguments: str) -> str:
    """Return the command that installs into this environment, activated or not: its pip, or uv, which puts none in."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return f"{python} -m pip install {arguments}" if find_spec("pip") else f"uv pip install -p {python} {arguments}"
