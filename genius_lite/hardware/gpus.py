"""The GPUs that llama.cpp offloads to, and ggml's own functions, which llama-cpp-python's bindings leave out."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from genius_lite.hardware.system import free_memory

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float, "s": ctypes.c_size_t}
_SHARED = {1: False, 2: True}  # by ggml_backend_dev_type: a GPU with memory of its own, one that shares the system's


@dataclass(frozen=True)
class Gpu:
    """A device that llama.cpp can offload layers to, with the bytes that are `free`, and those that it calls so.

    They differ where its memory is the system's (`shared`): layers that it does not get take as much of that, so it may
    get `room` bytes of them.
    """

    name: str
    free: int
    room: int
    shared: bool = False


def gpus() -> list[Gpu]:
    """List the GPUs that llama.cpp was built for and uses, from ggml's registry of devices.

    It takes those that share the system's memory only where there is no other (`llama_model_load_from_file_impl`). What
    they call free is all that this process does not hold of it, whoever else does: no more is free than the system has.
    """
    count = ggml_function("backend_dev_count", ctypes.c_size_t, "")
    get = ggml_function("backend_dev_get", ctypes.c_void_p, "s")
    kind = ggml_function("backend_dev_type", ctypes.c_int, "p")
    named = ggml_function("backend_dev_description", ctypes.c_char_p, "p")
    memory = ggml_function("backend_dev_memory", None, "ppp")
    found: dict[bool, list[Gpu]] = {False: [], True: []}
    for device in map(get, range(count())):
        if (type_ := kind(device)) in _SHARED:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            shared = _SHARED[type_] or sys.platform == "darwin"
            left = min(free.value, free_memory()) if shared else free.value
            found[_SHARED[type_]].append(Gpu(named(device).decode(), left, free.value, shared))
    return found[False] or found[True]


def ggml_function(name: str, result: Any, arguments: str) -> Any:
    """Return ggml's function of this name (without `ggml_`), which llama-cpp-python's bindings leave out.

    Args:
        arguments: a letter of `_TYPES` for each.

    Raises:
        AttributeError: this build of llama.cpp has none.
    """
    libraries = _libraries()
    library = next((each for each in libraries if hasattr(each, f"ggml_{name}")), libraries[0])
    function = library[f"ggml_{name}"]  # by index each time another object, whose types are our own
    function.argtypes, function.restype = [_TYPES[letter] for letter in arguments], result
    return function


@cache
def _libraries() -> list[ctypes.CDLL]:
    """Find ggml's, once: on Windows llama-cpp-python puts their folder before PATH at each loading."""
    import llama_cpp.llama_cpp as bindings
    from llama_cpp._ctypes_extensions import load_shared_library

    if sys.platform != "win32":
        return [bindings._lib]  # which leads to ggml's
    return [load_shared_library(part, bindings._base_path) for part in ("ggml", "ggml-base")]
