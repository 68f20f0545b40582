"""What is there on this machine. Looked at, and of 4-bit training tried; nothing is judged here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

import msgspec

from genius_lite.doctor.versions import installed, least

_OPENMP = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS)_")
_NVIDIA, _AMD = Path("/proc/driver/nvidia/version"), Path("/dev/kfd")


class Space(msgspec.Struct, frozen=True):
    """A folder that a run writes to, and the free bytes of its disk."""

    use: str
    path: str
    free: int


class Card(msgspec.Struct, frozen=True):
    """A GPU as a library names it, and its free bytes."""

    name: str
    free: int


class Llama(msgspec.Struct, frozen=True):
    """How llama.cpp was built: processor features and libraries by its own names; and the GPUs that it sees.

    `amx_broken`: it has AMX kernels that do not work, see `sampler/llama.py`.
    """

    features: list[str]
    gpus: list[Card]
    offloads: bool
    amx_broken: bool = False


class Torch(msgspec.Struct, frozen=True):
    """torch's devices: the CUDA version that it was built with, and the cards that it sees."""

    threads: int
    cuda: str | None
    cards: list[Card]
    mps: bool
    bf16: bool


class FourBit(msgspec.Struct, frozen=True):
    """bitsandbytes: devices that it has code for, and whether an NF4 layer multiplied and gave a gradient.

    `error` is how far the product was from that of the unquantized matrix, relative; `fault` what was raised.
    """

    devices: list[str]
    error: float | None
    gradient: bool
    fault: str = ""


class Findings(msgspec.Struct, frozen=True):
    """All of it; sizes in bytes. `required` are specifiers, `environment` the variables that threads depend on."""

    system: str
    python: str
    cpu: str
    cores: int
    cpu_flags: list[str]
    memory: int
    free_memory: int
    nvidia: bool
    amd: bool
    versions: dict[str, str | None]
    required: dict[str, str]
    llama: Llama | None
    torch: Torch | None
    four_bit: FourBit | None
    spaces: list[Space]
    environment: dict[str, str]
    offline: bool


def look(run_folder: Path) -> Findings:
    """At this machine, and at the disks that a run with this folder would fill."""
    import psutil

    from genius_lite.hardware import cores, cpu_name, free_memory

    versions = installed()
    torch = _torch() if versions["torch"] else None
    return Findings(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu_name(),
        cores=cores(),
        cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
        memory=psutil.virtual_memory().total,
        free_memory=free_memory(),
        nvidia=_NVIDIA.exists() or shutil.which("nvidia-smi") is not None,
        amd=_AMD.exists(),
        versions=versions,
        required=least(),
        llama=_llama() if versions["llama-cpp-python"] else None,
        torch=torch,
        four_bit=_four_bit(torch) if versions["bitsandbytes"] and torch else None,
        spaces=_spaces(run_folder),
        environment={name: value for name, value in sorted(os.environ.items()) if _OPENMP.match(name)},
        offline=os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"),
    )


def _cpu_flags(cpuinfo: Path) -> list[str]:
    """Instruction sets as Linux names them; elsewhere none are known."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return found.partition(":")[2].split()


def _llama() -> Llama:
    import llama_cpp

    from genius_lite.hardware import gpus
    from genius_lite.sampler.llama import amx_broken

    said = llama_cpp.llama_print_system_info().decode()
    features = re.findall(r"(\w+) = [1-9]\d*", said)
    cards = [Card(gpu.name, gpu.free) for gpu in gpus()]
    return Llama(features, cards, bool(llama_cpp.llama_supports_gpu_offload()), amx_broken())


def _torch() -> Torch:
    import torch

    from genius_lite.hardware import compute_in_bf16, learner_device

    cards = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            cards.append(Card(torch.cuda.get_device_name(number), torch.cuda.mem_get_info(number)[0]))
    return Torch(
        threads=torch.get_num_threads(),
        cuda=torch.version.cuda,
        cards=cards,
        mps=torch.backends.mps.is_available(),
        bf16=compute_in_bf16(learner_device()),
    )


def _four_bit(torch_there: Torch) -> FourBit:
    from genius_lite.hardware import learner_device

    try:
        import bitsandbytes

        devices = sorted(bitsandbytes.supported_torch_devices)
    except (ImportError, OSError, RuntimeError) as e:
        return FourBit([], None, gradient=False, fault=_first_line(e))
    try:
        error, gradient = _try_nf4(learner_device())
    except (OSError, RuntimeError, ValueError, NotImplementedError) as e:
        return FourBit(devices, None, gradient=False, fault=_first_line(e))
    return FourBit(devices, error, gradient)


def _try_nf4(device: str) -> tuple[float, bool]:
    """Multiply with a small NF4 matrix as the learner does: scored without gradients first, then with them."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 64, generator=generator)
    layer = Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight.data = weight.clone()
    layer = layer.to(device).eval()  # quantizes
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False  # as the learner has it, see learner/model.py
    inputs = torch.randn(8, 64, generator=generator).to(device)
    with torch.no_grad():
        scored = layer(inputs)
    inputs.requires_grad_(True)
    layer.train()(inputs).sum().backward()
    exact = inputs.detach().cpu() @ weight.T
    error = float((scored.cpu().float() - exact).norm() / exact.norm())
    return error, inputs.grad is not None and bool(inputs.grad.any())


def _spaces(run_folder: Path) -> list[Space]:
    import platformdirs

    from genius_lite.rundir import free_disk

    cache = platformdirs.user_cache_path("genius-lite")
    uses = {"runs": run_folder, "cache": cache, "temporary files": Path(tempfile.gettempdir())}
    if hub := os.environ.get("HF_HOME"):
        uses["hub downloads"] = Path(hub)
    else:
        uses["hub downloads"] = Path.home() / ".cache" / "huggingface"
    return [Space(use, str(path), free_disk(path)) for use, path in uses.items()]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
