"""From findings to problems: what each costs, and the command that mends it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from genius_lite.doctor.findings import Findings
from genius_lite.doctor.versions import TESTED

Level = Literal["stops", "slows", "note"]

# Linux's name of an instruction set -> llama.cpp's.
_FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
_NF4_ERROR = 0.2  # relative; NF4 rounds a normal distribution to within 0.1
_LEAST_MEMORY, _LEAST_DISK = 2_000_000_000, 2_000_000_000  # bytes: the quickstart takes as much


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and a shell command that mends it (or a sentence, where none does).

    `stops`: a run cannot work; `slows`: it can, but with less speed or room; `note`: good to know.
    """

    level: Level
    what: str
    mend: str


def problems(found: Findings) -> list[Problem]:
    """Everything that is wrong, the worst first."""
    order = ("stops", "slows", "note")
    every = [*_versions(found), *_llama(found), *_torch(found), *_four_bit(found), *_room(found), *_threads(found)]
    return sorted(every, key=lambda problem: order.index(problem.level))


def rebuild(*options: str) -> str:
    """The command that compiles the tested llama-cpp-python anew."""
    cmake = " ".join(f"-D{option}" for option in options)
    package = f"llama-cpp-python=={TESTED['llama-cpp-python']}"
    return (
        f'CMAKE_ARGS="{cmake}" pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python '
        f"'{package}'"
    )


def _versions(found: Findings) -> Iterator[Problem]:
    for name, tested in TESTED.items():
        there, mend = found.versions.get(name), f"pip install '{name}=={tested}'"
        if there is None:
            yield Problem("stops", f"{name} is not installed", mend)
        elif (wanted := found.required.get(name)) and not SpecifierSet(wanted).contains(there, prereleases=True):
            yield Problem("stops", f"{name} {there} is too old: {wanted} is needed", mend)
        elif Version(there) < Version(tested):
            yield Problem("note", f"{name} {there} is older than {tested}, which is what was tested", mend)


def _llama(found: Findings) -> Iterator[Problem]:
    llama = found.llama
    if llama is None:
        return
    missing = [name for flag, name in _FEATURES.items() if flag in found.cpu_flags and name not in llama.features]
    if missing:
        yield Problem(
            "slows", f"llama.cpp was built without {', '.join(missing)}, which this CPU has", _rebuild_here(found)
        )
    if llama.amx_broken:
        what = "llama.cpp's AMX kernels were broken by the compiler: they are not used, and weights are not repacked"
        yield Problem("slows", what, _rebuild_here(found))
    if found.nvidia and not llama.offloads:
        yield Problem(
            "slows", "llama.cpp was built without CUDA; this machine has an NVIDIA GPU", rebuild("GGML_CUDA=on")
        )
    elif found.amd and not llama.offloads:
        yield Problem("slows", "llama.cpp was built without HIP; this machine has an AMD GPU", rebuild("GGML_HIP=on"))
    elif found.system == "Darwin arm64" and not llama.offloads:
        yield Problem("slows", "llama.cpp was built without Metal", rebuild("GGML_METAL=on"))
    elif llama.offloads and not llama.gpus:
        yield Problem("slows", "llama.cpp was built for a GPU and sees none", "nvidia-smi")


def _rebuild_here(found: Findings) -> str:
    """For this processor. Where it has AMX, GCC 12 breaks the kernels unless it is told not to; and `native` takes
    AVX512-FP16 too, with which llama.cpp 0.3.36 computes attention in half precision, heads of 64 number by number.
    """
    if "amx_int8" not in found.cpu_flags:
        return rebuild("GGML_NATIVE=on")
    wanted = [f"GGML_{name}=on" for flag, name in _FEATURES.items() if flag in found.cpu_flags]
    return rebuild("GGML_NATIVE=off", *wanted, "GGML_AMX_TILE=on", "CMAKE_CXX_FLAGS=-fno-dse")


def _torch(found: Findings) -> Iterator[Problem]:
    torch = found.torch
    if torch is None:
        return
    if found.nvidia and torch.cuda is None:
        mend = f"pip install --force-reinstall 'torch=={TESTED['torch']}' --index-url https://download.pytorch.org/whl/cu128"
        yield Problem("slows", "torch was built without CUDA; this machine has an NVIDIA GPU", mend)
    elif torch.cuda and not torch.cards:
        what = f"torch was built for CUDA {torch.cuda} and sees no GPU"
        yield Problem("slows" if found.nvidia else "note", what, "nvidia-smi")


def _four_bit(found: Findings) -> Iterator[Problem]:
    four_bit = found.four_bit
    if four_bit is None:
        return
    mend = f"pip install --force-reinstall --no-deps 'bitsandbytes=={TESTED['bitsandbytes']}'"
    if four_bit.fault:
        yield Problem("slows", f"NF4 does not work ({four_bit.fault}); until then: learner.precision: bf16", mend)
    elif four_bit.error is not None and four_bit.error > _NF4_ERROR:
        yield Problem("stops", f"an NF4 matrix multiplies wrongly, by {four_bit.error:.0%}", mend)
    elif not four_bit.gradient:
        yield Problem("stops", "no gradient passes through an NF4 matrix, so that nothing would be learned", mend)


def _room(found: Findings) -> Iterator[Problem]:
    if found.free_memory < _LEAST_MEMORY:
        what = f"{found.free_memory / 1e9:.1f} GB of memory are free; the smallest run takes {_LEAST_MEMORY / 1e9:.0f}"
        yield Problem("stops", what, "close other programs; genius-lite plan RECIPE says what a run takes")
    for space in found.spaces:
        if space.free < _LEAST_DISK:
            what = f"{space.free / 1e9:.1f} GB are free for {space.use} in {space.path}"
            yield Problem("stops" if space.use == "runs" else "slows", what, _elsewhere(space.use))


def _elsewhere(use: str) -> str:
    return {
        "runs": "genius-lite run RECIPE --out /another/disk/run",
        "cache": "export XDG_CACHE_HOME=/another/disk/cache",
        "temporary files": "export TMPDIR=/another/disk/tmp",
    }.get(use, "export HF_HOME=/another/disk/huggingface")


def _threads(found: Findings) -> Iterator[Problem]:
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"):
        value = found.environment.get(name, "")
        if value.isdecimal() and 0 < int(value) < found.cores:
            yield Problem("slows", f"{name}={value} keeps the learner from {found.cores} cores", f"unset {name}")
    if found.environment.get("OMP_WAIT_POLICY", "").lower() == "active":
        what = "OMP_WAIT_POLICY=active lets threads spin, which starves them as soon as another program runs"
        yield Problem("slows", what, "unset OMP_WAIT_POLICY")
