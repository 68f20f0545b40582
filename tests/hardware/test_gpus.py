from __future__ import annotations

import sys

from genius_lite.hardware import gpus
from genius_lite.hardware.gpus import Gpu


def test_on_windows_ggml_is_loaded_once(monkeypatch):
    """There llama-cpp-python lengthens PATH by its folder at each loading, until Windows takes no more."""
    from llama_cpp import _ctypes_extensions, llama_cpp

    loaded = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(
        _ctypes_extensions, "load_shared_library", lambda name, _: loaded.append(name) or llama_cpp._lib
    )
    gpus._libraries.cache_clear()
    try:
        for _ in range(3):
            gpus.gpus()
    finally:
        gpus._libraries.cache_clear()
    assert loaded == ["ggml", "ggml-base"]


def test_of_gpus_those_with_memory_of_their_own_count_and_shared_memory_is_the_systems(monkeypatch):
    """llama.cpp uses an integrated one only where there is no other; what it calls free, others may hold."""

    def found(*devices: tuple[int, int]) -> list[Gpu]:
        def function(name, result, arguments):
            def memory(device, free, total):
                free._obj.value = devices[device][1]

            return {
                "backend_dev_count": lambda: len(devices),
                "backend_dev_get": lambda n: n,
                "backend_dev_type": lambda n: devices[n][0],
                "backend_dev_description": lambda n: f"device {n}".encode(),
                "backend_dev_memory": memory,
            }[name]

        monkeypatch.setattr(gpus, "ggml_function", function)
        return gpus.gpus()

    monkeypatch.setattr(gpus, "free_memory", lambda: 3_000)
    assert found((0, 1), (1, 8_000), (2, 16_000)) == [Gpu("device 1", 8_000, 8_000)]
    assert found((2, 16_000)) == [Gpu("device 0", 3_000, 16_000, shared=True)]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found((1, 11_000)) == [Gpu("device 0", 3_000, 11_000, shared=True)]
