"""Imports libraries without torch's compiler, which most extractions do without.

torchvision imports `torch._dynamo` to ask later whether it can compile, and timm to mark
functions as not to be compiled. That imports sympy, triton and 800 other modules, nearly half
the time in which an extraction starts, and is of use only to something that compiles.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_UTILS = "torch._dynamo.utils"


class _Deferred(ModuleType):
    """Stands in for `torch._dynamo.utils` until anything but the one function is asked for."""

    def is_compile_supported(self, device_type: str) -> bool:
        """Ask the real module, which is imported by then."""
        return bool(import_module(_UTILS).is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by `inspect` of every module
            raise AttributeError(name)
        sys.modules.pop(_UTILS, None)
        return getattr(import_module(_UTILS), name)


def _disable(
    function: Callable[..., Any] | None = None, recursive: bool = True, **_: Any
) -> Callable[..., Any]:
    """Do what `torch.compiler.disable` does, when the function is first called."""
    deferred: Callable[..., Any] = torch._disable_dynamo(function, recursive)  # type: ignore[attr-defined]
    return deferred


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """Import libraries so that they import torch's compiler when they use it.

    Whatever else they ask of the compiler meanwhile they get from the real one. Afterwards
    torch is as it was.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    torch.compiler.disable = _disable  # type: ignore[assignment]
    sys.modules[_UTILS] = _Deferred(_UTILS)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if isinstance(sys.modules.get(_UTILS), _Deferred):
            del sys.modules[_UTILS]
