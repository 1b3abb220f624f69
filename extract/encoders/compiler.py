"""Imports libraries without torch's compiler, which most extractions do not need.

torchvision imports `torch._dynamo` to ask later whether compiling is supported, and timm imports
it to exclude functions from compilation. This loads sympy, triton and 800 other modules, which
takes nearly half of an extraction's start-up time and is useful only for compiling.
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
    """Stands in for `torch._dynamo.utils` until any attribute but the one below is requested."""

    def is_compile_supported(self, device_type: str) -> bool:
        """Ask the real module, importing it first if necessary."""
        return bool(import_module(_UTILS).is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` requests these of every module
            raise AttributeError(name)
        sys.modules.pop(_UTILS, None)
        return getattr(import_module(_UTILS), name)


def _disable(
    function: Callable[..., Any] | None = None, recursive: bool = True, **_: Any
) -> Callable[..., Any]:
    """Do what `torch.compiler.disable` does, but only when the function is first called."""
    deferred: Callable[..., Any] = torch._disable_dynamo(function, recursive)  # type: ignore[attr-defined]
    return deferred


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """Let libraries that are imported inside load torch's compiler only when they use it.

    Any other use of the compiler meanwhile loads the real one. Torch is restored afterwards.
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
