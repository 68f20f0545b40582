"""What this machine offers: cores, memory and GPUs for llama.cpp, and the learner's device and precision."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["nf4", "bf16", "fp32"]

_GPU_TYPES = {1, 2}  # ggml_backend_dev_type: a GPU with memory of its own, one that shares the system's


@dataclass(frozen=True)
class Gpu:
    """A device that llama.cpp can offload layers to; `free` in bytes."""

    name: str
    free: int


def cores() -> int:
    """Processor cores that this process may use (a container's limit included, where the kernel tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's brand name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes that can be used without swapping."""
    import psutil

    return psutil.virtual_memory().available


def peak_memory() -> int:
    """The most bytes that this process ever held in memory."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there


def gpus() -> list[Gpu]:
    """The GPUs that llama.cpp was built for and finds, from ggml's registry of devices."""
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    folder = Path(llama_cpp.__file__).parent / "lib"
    registry, base = load_shared_library("ggml", folder), load_shared_library("ggml-base", folder)
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    for function in (base.ggml_backend_dev_type, base.ggml_backend_dev_description):
        function.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    devices = [registry.ggml_backend_dev_get(i) for i in range(registry.ggml_backend_dev_count())]
    found = []
    for device in devices:
        if base.ggml_backend_dev_type(device) in _GPU_TYPES:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(Gpu(base.ggml_backend_dev_description(device).decode(), free.value))
    return found


def learner_device() -> Device:
    """The device that torch trains on."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def learner_precision(wanted: Literal["auto", "nf4", "bf16", "fp32"], device: Device) -> Precision:
    """The precision of the frozen weights: `wanted`, or NF4 where the installed bitsandbytes has it for the device."""
    if wanted != "auto":
        return wanted
    import bitsandbytes

    return "nf4" if device in bitsandbytes.supported_torch_devices else "bf16"


def learner_free_memory(device: Device) -> int:
    """Bytes that training may still take on its device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


def compute_in_bf16(device: Device) -> bool:
    """Whether the device multiplies bf16 matrices natively.

    A CPU without AVX-512 emulates them: 9 times slower than fp32 on an AVX2 EPYC.
    """
    import torch

    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
