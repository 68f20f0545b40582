"""ggml's C functions that build graphs, which llama-cpp-python's bindings leave out.

Tensors and contexts are pointers, as numbers.
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

from genius_lite.hardware.gpus import ggml_function

F32, I32 = 0, 26  # ggml_type


class DeviceError(RuntimeError):
    """llama.cpp, as it is built or on this device, cannot draw there."""


class Tensor(ctypes.Structure):
    """The head of `struct ggml_tensor`, of which `_layout_is_known` makes sure."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
    ]


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """ggml's functions, by their names without `ggml_`; those that make tensors take and return pointers as numbers.

    Raises:
        DeviceError: this build of llama.cpp has not all of them, or lays out tensors in another way.
    """

    _MAKING: ClassVar = {
        "soft_max": "", "argmax": "", "log": "", "cumsum": "", "sum_rows": "", "step": "", "neg": "", "cont": "",
        "sub": "p", "add": "p", "mul": "p", "div": "p", "get_rows": "p", "concat": "pi", "argsort": "i", "cast": "i",
        "clamp": "ff", "scale": "f", "scale_bias": "ff", "pad": "iiii", "repeat_4d": "llll", "reshape_2d": "ll",
        "reshape_3d": "lll", "view_1d": "ls", "view_2d": "llss",
    }  # fmt: skip

    def __init__(self) -> None:
        try:
            for name, arguments in self._MAKING.items():
                self._take(name, ctypes.c_void_p, "pp" + arguments)
            self._take("new_tensor_2d", ctypes.c_void_p, "pill")
            self._take("set_input", None, "p")
            self._take("backend_tensor_set", None, "ppss")
            self._take("backend_buft_get_device", ctypes.c_void_p, "p")
            self._take("backend_dev_supports_op", ctypes.c_bool, "pp")
            self._take("new_graph_custom", ctypes.c_void_p, "psi")
            self._take("build_forward_expand", None, "pp")
            self._take("graph_n_nodes", ctypes.c_int, "p")
            self._take("graph_node", ctypes.c_void_p, "pi")
            self._take("free", None, "p")
            self._init = ggml_function("init", ctypes.c_void_p, "")
        except AttributeError as e:
            raise DeviceError(f"this build of llama.cpp lacks {e}") from None
        self._init.argtypes = [_InitParams]
        if not self._layout_is_known():
            raise DeviceError("this build of llama.cpp lays tensors out in another way")

    def _take(self, name: str, result: Any, arguments: str) -> None:
        setattr(self, name, ggml_function(name, result, arguments))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ggml_{name}")

    def scratch(self) -> Any:
        """Return a context in which a graph may be built that is never computed."""
        return self._init(_InitParams(1 << 21, None, True))

    def _layout_is_known(self) -> bool:
        context = self.scratch()
        view = self.view_1d(context, self.new_tensor_2d(context, F32, 3, 5), 3, 12)
        found = Tensor.from_address(view)
        whole = Tensor.from_address(found.view_src) if found.view_src else found
        shapes = tuple(found.ne), tuple(whole.ne), whole.nb[1], found.view_offs, found.type
        self.free(context)
        return shapes == ((3, 1, 1, 1), (3, 5, 1, 1), 12, 12, F32)
