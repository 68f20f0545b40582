"""What the figures of a benchmark were measured on: each one says it, and has it in its line of JSON."""

from __future__ import annotations

import re
from typing import Any

from genius_lite import __version__
from genius_lite.hardware.gpus import gpus
from genius_lite.hardware.system import cores, cpu_name


def measured_on() -> dict[str, Any]:
    """Describe the machine, and the llama.cpp that computes there: its version, and what its build uses of it.

    AMX is none of that where it is broken: our sampler does without.
    """
    # Not above: processes whose memory is measured import a benchmark without llama.cpp.
    import llama_cpp

    from genius_lite.sampler.llama import amx_broken

    built = re.findall(r"(\w+) = ([1-9][\d,]*)", llama_cpp.llama_print_system_info().decode())
    unused = "AMX_INT8" if amx_broken() else ""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "gpus": [gpu.name for gpu in gpus()],
        "genius-lite": __version__,
        "llama-cpp-python": llama_cpp.__version__,
        "llama.cpp uses": [name if value == "1" else f"{name}={value}" for name, value in built if name != unused],
    }


def in_words(machine: dict[str, Any]) -> str:
    """Return what `measured_on` says as a line."""
    where = f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['gpus']) or 'no GPU'}"
    own, llama = (f"{name} {machine[name]}" for name in ("genius-lite", "llama-cpp-python"))
    return f"{where}; {own}, {llama} ({' '.join(machine['llama.cpp uses'])})"
