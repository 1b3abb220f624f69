"""What the two stages agree on: a client's features on disk. Knows neither stage."""

from .errors import CacheError, FedclipError
from .key import image_key
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

__all__ = [
    "CacheError",
    "CacheFolder",
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
