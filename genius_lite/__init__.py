"""genius-lite: self-train a quantized GGUF model on unlabelled questions, on a laptop.

    from genius_lite import load, run

    summary = run(load("mine.yaml"))

The names below are looked up when they are first used, so that importing the package stays light.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_HOMES = {
    "Policy": "pipeline.round",
    "Recipe": "recipe",
    "UserError": "errors",
    "load": "recipe.reader",
    "open_run": "run",
    "run": "run",
}
"""Where each name of the library lives; `__init__.pyi` says the same to type checkers."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return ["__version__", *_HOMES]


class _Package(ModuleType):
    """A package whose `run` is the function: Python puts a submodule there as soon as it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
