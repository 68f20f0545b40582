"""What this machine has for a run: every part of it that is looked at, and the problems in the end."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from genius_lite.doctor.build import Finding, Level, Problem, install, listed, look_at_llama, pins
from genius_lite.hardware.device import compute_in_bf16, keep_layout, learner_device
from genius_lite.hardware.gpus import Gpu
from genius_lite.hardware.system import cores, cpu_name, free_memory
from genius_lite.rundir.disk import cache_folder, can_write, free_disk, told
from genius_lite.text import amount, first_line

_OWN = "genius-lite-gguf"  # the distribution
_HEADS: dict[Level, str] = {"stops": "prevents a run", "slows": "costs speed or room", "note": "good to know"}
_NF4_ERROR = 0.2  # relative; NF4 rounds a normal distribution to within 0.1
_LEAST_MEMORY, _LEAST_DISK = 2e9, 2e9  # bytes: the quickstart takes as much
_OTHER_DISK = {
    "runs": "genius-lite run RECIPE --out /another/disk/run",
    "cache": "export XDG_CACHE_HOME=/another/disk/cache",
    "temporary files": "export TMPDIR=/another/disk/tmp",
    "hub downloads": "export HF_HUB_CACHE=/another/disk/hub",
}


def examine(run_folder: Path) -> Iterator[Finding]:
    """Look at this machine, and at the disks that a run with this folder would fill; 4-bit training is tried."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    maker = _gpu_maker()
    yield Finding("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    yield Finding("CPU", f"{cpu_name()}, {amount(cores(), 'cores')}")
    yield from memory(free_memory(), psutil.virtual_memory().total)
    folders = (run_folder, cache_folder(), Path(tempfile.gettempdir()), Path(HF_HUB_CACHE))
    for use, folder in zip(_OTHER_DISK, folders, strict=True):
        yield from disk(use, folder, free_disk(folder), can_write(folder))
    required = requirements()
    installed = {name: _installed(name) for name in required}
    if version := installed.get("llama-cpp-python"):
        yield from look_at_llama(version, maker)
    if version := installed.get("torch"):
        yield from _look_at_torch(version, maker)
    if version and (version := installed.get("bitsandbytes")):
        yield from _try_bitsandbytes(version)
    yield from libraries(required, pins(), installed)
    yield from threads(os.environ, cores())
    yield Finding("hub", "offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "no token is needed for public models")


def report(found: Sequence[Finding]) -> Iterator[str]:
    """Say the findings, and then the problems, the worst first, each with what mends it."""
    yield from (f"{finding.label:12} {finding.line}" for finding in found if finding.line)
    yield ""
    problems = [finding.problem for finding in found if finding.problem]
    for problem in sorted(problems, key=lambda problem: [*_HEADS].index(problem.level)):
        yield f"{_HEADS[problem.level]}: {problem.what}"
        yield f"    {problem.mend}"
    if not problems:
        yield "Nothing is wrong."


def memory(free: int, total: int) -> Iterator[Finding]:
    """Judge the main memory, bytes."""
    what = f"{free / 1e9:.1f} GB of memory are free; the smallest run takes {_LEAST_MEMORY / 1e9:.0f}"
    problem = Problem("stops", what, "close other programs; genius-lite plan RECIPE says what a run takes")
    short = free < _LEAST_MEMORY
    yield Finding("memory", f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free", problem if short else None)


def disk(use: str, folder: Path, free: int, writable: bool = True) -> Iterator[Finding]:
    """Judge the free bytes of the disk that a folder is on, and whether files can be put there."""
    what = f"{told(free)} are free for {use} in {folder}" if writable else f"{folder}, for {use}, cannot be written"
    problem = Problem("stops" if use == "runs" else "slows", what, _OTHER_DISK[use])
    wrong = free < _LEAST_DISK or not writable
    yield Finding("disk", f"{told(free)} free for {use} ({folder})", problem if wrong else None)


def torch(version: str, cuda: str | None, cards: Sequence[Gpu], maker: str, rest: str = "") -> Iterator[Finding]:
    """Judge how torch was built: for which version of CUDA, and which GPUs it sees."""
    problem = None
    if maker == "NVIDIA" and cuda is None:
        index = "https://download.pytorch.org/whl/cu130"
        mend = install(f"--force-reinstall torch=={pins()['torch']} --index-url {index}")
        problem = Problem("slows", "torch was built without CUDA; this machine has an NVIDIA GPU", mend)
    elif cuda and not cards:
        what = f"torch was built for CUDA {cuda} and sees no GPU"
        problem = Problem("slows" if maker == "NVIDIA" else "note", what, "nvidia-smi")
    yield Finding("torch", f"{version}, {f'CUDA {cuda}' if cuda else 'no CUDA'}, {rest}", problem)


def four_bit(version: str, fault: str, error: float, gradient: bool) -> Iterator[Finding]:
    """Judge bitsandbytes by an NF4 layer: what it raised, how far its product was off, whether it gave a gradient."""
    mend = install(f"--force-reinstall --no-deps bitsandbytes=={pins()['bitsandbytes']}")
    line, problem = fault or f"an NF4 product is off by {error:.0%}, {'a' if gradient else 'no'} gradient passes", None
    if fault:
        problem = Problem("slows", f"NF4 does not work ({fault}); until then: learner.precision: bf16", mend)
    elif error > _NF4_ERROR:
        problem = Problem("stops", f"an NF4 matrix multiplies wrongly, by {error:.0%}", mend)
    elif not gradient:
        problem = Problem("stops", "no gradient passes through an NF4 matrix, so that nothing would be learned", mend)
    yield Finding("bitsandbytes", f"{version}, {line}", problem)


def libraries(
    required: Mapping[str, str], tested: Mapping[str, str], installed: Mapping[str, str | None]
) -> Iterator[Finding]:
    """Judge versions: those asked for (as `>=2.10`), those that everything was tested with, those that are there."""
    if not required:
        what = f"{_OWN} is not installed: llama.cpp, torch and libraries are not looked at"
        problem = Problem("note", what, f"in a clone of its repository: {install('.')}")
        yield Finding("libraries", "not looked at", problem)
        return
    others = [f"{n} {v}" for n, v in installed.items() if v and v.partition("+")[0] != tested[n]]  # 2.13.0+cpu is one
    missing = sum(version is None for version in installed.values())
    line = f"{len(required) - len(others) - missing} of {len(required)} are the tested versions"
    yield Finding("libraries", line + (f"; others: {', '.join(others)}" if others else ""))
    for name, specifier in required.items():
        there, mend, problem = installed[name], install(f"{name}=={tested[name]}"), None
        if there is None:
            problem = Problem("stops", f"{name} is not installed", mend)
        elif not SpecifierSet(specifier).contains(there, prereleases=True):
            problem = Problem("stops", f"{name} {there} is too old: {specifier} is needed", mend)
        elif Version(there) < Version(tested[name]):
            problem = Problem("note", f"{name} {there} is older than {tested[name]}, which is what was tested", mend)
        if problem:
            yield Finding("libraries", "", problem)


def threads(environment: Mapping[str, str], available: int) -> Iterator[Finding]:
    """Judge the variables that the number of threads depends on, for so many cores."""
    names = sorted(name for name in environment if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")))
    yield Finding("threads", " ".join(f"{name}={environment[name]}" for name in names) or "nothing set")
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"):
        if (value := environment.get(name, "")).isdecimal() and 0 < int(value) < available:
            what = f"{name}={value} keeps the learner from {amount(available, 'cores')}"
            yield Finding("threads", "", Problem("slows", what, f"unset {name}"))
    if environment.get("OMP_WAIT_POLICY", "").lower() == "active":
        what = "OMP_WAIT_POLICY=active lets threads spin, which starves them as soon as another program runs"
        yield Finding("threads", "", Problem("slows", what, "unset OMP_WAIT_POLICY"))


def requirements() -> dict[str, str]:
    """Return what genius-lite asks for, without extras, as `>=2.10`; nothing where it is not installed itself."""
    lines = metadata.requires(_OWN) if _installed(_OWN) else None
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, lines or []) if not r.marker}


def _installed(name: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)


def _gpu_maker() -> str:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "NVIDIA"
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return "AMD" if Path("/dev/kfd").exists() else "Apple" if apple else ""


def _look_at_torch(version: str, maker: str) -> Iterator[Finding]:
    import torch as library

    cuda, cards = library.cuda, []
    if cuda.is_available():
        free = [cuda.mem_get_info(n)[0] for n in range(cuda.device_count())]
        cards = [Gpu(cuda.get_device_name(n), left, left) for n, left in enumerate(free)]
    devices = listed(cards) or ("Metal" if library.backends.mps.is_available() else "no GPU")
    native = "native" if compute_in_bf16(learner_device()) else "emulated, so that fp32 is computed in"
    rest = f"{library.get_num_threads()} threads; {devices}; bf16 is {native}"
    return torch(version, library.version.cuda, cards, maker, rest)


def _try_bitsandbytes(version: str) -> Iterator[Finding]:
    """Multiply with a small NF4 matrix as the learner does: scored without gradients first, then with them."""
    import torch as library

    try:
        from bitsandbytes.nn.modules import Linear4bit

        layer = Linear4bit(64, 128, bias=False, compute_dtype=library.float32, quant_type="nf4")
        generator = library.Generator().manual_seed(0)
        weight = library.randn(128, 64, generator=generator)
        layer.weight.data = weight.clone()
        layer = layer.to(learner_device()).eval()  # quantizes
        keep_layout(layer)  # as the learner does
        inputs = library.randn(8, 64, generator=generator).to(learner_device())
        with library.no_grad():
            scored = layer(inputs)
        inputs.requires_grad_(True)
        layer.train()(inputs).sum().backward()
    except (ImportError, OSError, RuntimeError, ValueError, NotImplementedError) as e:
        return four_bit(version, first_line(e), 0, gradient=False)
    exact = inputs.detach().cpu() @ weight.T
    error = float((scored.cpu().float() - exact).norm() / exact.norm())
    gradient = inputs.grad is not None and bool(inputs.grad.any())
    return four_bit(version, "", error, gradient)
