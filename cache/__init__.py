"""The files between the two stages: each client's features on disk.

This package knows neither stage. Public names are imported on first use: the command line needs
only the options, and must answer without loading numpy and HDF5.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .common.errors import CacheError, FedclipError
    from .key import EncoderFacts, image_key
    from .npz import import_npz
    from .reader import read_cache
    from .schema import FeatureCache
    from .store import (
        CacheFolder,
        find_caches,
        latest_cache,
        load_cache,
        remove_cache,
        resolve_cache,
        verify_cache,
    )
    from .writer import write_cache
else:
    _MODULES = {
        "common.errors": ("CacheError", "FedclipError"),
        "key": ("EncoderFacts", "image_key"),
        "npz": ("import_npz",),
        "reader": ("read_cache",),
        "schema": ("FeatureCache",),
        "store": (
            "CacheFolder",
            "find_caches",
            "latest_cache",
            "load_cache",
            "remove_cache",
            "resolve_cache",
            "verify_cache",
        ),
        "writer": ("write_cache",),
    }

    def __getattr__(name):
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f".{module}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CacheError",
    "CacheFolder",
    "EncoderFacts",
    "FeatureCache",
    "FedclipError",
    "find_caches",
    "image_key",
    "import_npz",
    "latest_cache",
    "load_cache",
    "read_cache",
    "remove_cache",
    "resolve_cache",
    "verify_cache",
    "write_cache",
]
