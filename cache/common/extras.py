"""Libraries that only some things need; the error about a missing one names what to install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import FedclipError

if TYPE_CHECKING:
    from types import ModuleType

    import pandas as pd

# Extras of the package: what each is for, and the modules that it installs.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("fedclip export --to onnx", ("onnx", "onnxscript", "onnxruntime")),
    "report": ("fedclip report and .plot()", ("altair", "vl_convert")),
    "tables": (".to_pandas()", ("pandas",)),
    "text": ("--model hf:NAME", ("transformers",)),
    "tensorboard": ("--tensorboard", ("tensorboardX",)),
    "flower": ("federation across sites", ("flwr",)),
}


def load_extra(extra: str, module: str | None = None) -> ModuleType:
    """Import a module that an extra installs.

    Args:
        extra: The extra.
        module: One of its modules; None for the first.

    Raises:
        FedclipError: one of its modules is not installed.
    """
    purpose, modules = EXTRAS[extra]
    missing = missing_modules(extra)
    if missing:
        raise FedclipError(
            f"{purpose}: needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; run 'pip install "
            f"fedclip[{extra}]'"
        )
    return import_module(module or modules[0])


def missing_modules(extra: str) -> list[str]:
    """List the modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra][1] if find_spec(module) is None]


def data_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Make a pandas table of rows.

    Raises:
        FedclipError: pandas is not installed.
    """
    table: pd.DataFrame = load_extra("tables").DataFrame(rows, columns=list(columns))
    return table
