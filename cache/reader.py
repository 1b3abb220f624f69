"""Reads a client's file, trusting nothing in it before it is checked.

Each format version has its own reader in `_READERS`.
"""

import json
import math
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .common.errors import CacheError, FedclipError
from .common.files import regular
from .key import EncoderFacts
from .schema import (
    ATTRIBUTES,
    BLOCK_SIZE,
    DATASETS,
    ENCODING_TYPE,
    TEXT,
    TEXT_DATASETS,
    FeatureCache,
    body_sha256,
    unpack_block,
)


def read_cache(path: Path) -> FeatureCache:
    """Read a client's file into memory.

    Every byte is checked against the file's own hash before HDF5 parses anything.
    Then every shape, dtype and value is checked, so callers need no checks of their own.

    Raises:
        CacheError: the file is missing, not a cache, of an unknown format version,
            truncated or altered, or its parts contradict each other. The message
            names the file.
    """
    regular(path)
    try:
        with path.open("rb") as raw:
            return _parse(raw, _checked_version(raw))
    except FileNotFoundError:
        raise CacheError(
            f"{path}: file not found; extract the dataset again or restore a copy"
        ) from None
    except FedclipError as error:
        reason = " ".join(str(error).split())
        raise CacheError(
            f"{path}: {reason}; remove the cache (fedclip cache rm) or restore an intact copy"
        ) from None


def _checked_version(raw: BufferedReader) -> int:
    """Check a file's bytes against its hash, and return its format version."""
    version, expected = unpack_block(raw.read(BLOCK_SIZE))
    if body_sha256(raw) != expected:
        raise CacheError("is truncated or altered: its bytes do not match its SHA-256")
    return version


def _parse(raw: BufferedReader, version: int) -> FeatureCache:
    # A valid hash shows that the file is unchanged, not that fedclip wrote it. So any error
    # that HDF5 raises is reported as a fault of the file.
    try:
        raw.seek(0)
        with h5py.File(raw, "r") as file:
            attributes = {name: _attribute(file, name, kinds) for name, kinds in ATTRIBUTES.items()}
            _check_encoding(attributes, version)
            return _READERS[version](file, attributes)
    except FedclipError:
        raise
    except Exception as error:
        raise CacheError(f"cannot be parsed as a cache ({error})") from None


def _read_version_1(file: h5py.File, attributes: Mapping[str, Any]) -> FeatureCache:
    """Read a file of fedclip 0.1: ungrouped facts, and text features as wide as the images'."""
    names = {name: name for name in DATASETS} | {"class_names": "text/class_names"}
    facts = group_flat_facts(json.loads(attributes["encoder"]))
    cache = _assemble(
        attributes, facts, {name: _dataset(file, name, at) for name, at in names.items()}
    )
    width = cache.text_features.shape[2]
    if width != cache.embed_dim:
        raise CacheError(f"has text/features {width} wide and image/features {cache.embed_dim}")
    return cache


def _read_version_2(file: h5py.File, attributes: Mapping[str, Any]) -> FeatureCache:
    """Read grouped facts, and text features of any width, which may be absent."""
    absent = () if file.id.links.exists(TEXT.encode()) else TEXT_DATASETS
    arrays = {name: _dataset(file, name, name) for name in DATASETS if name not in absent}
    return _assemble(
        attributes, EncoderFacts.from_groups(json.loads(attributes["encoder"])), arrays
    )


_READERS: Mapping[int, Callable[[h5py.File, Mapping[str, Any]], FeatureCache]] = {
    1: _read_version_1,
    2: _read_version_2,
}

# Groups of the facts that version 1 stored in one object. All others are shared.
_VERSION_1_GROUPS: Mapping[str, frozenset[str]] = {
    "image": frozenset(
        {
            *("image_size", "mode", "mean", "std", "interpolation", "resize", "fill_color"),
            *("decoder", "resizer"),
        }
    ),
    "text": frozenset({"tokenizer"}),
    "about": frozenset({"model", "pretrained", "parameters"}),
}


def group_flat_facts(facts: Any) -> EncoderFacts:
    """Group the facts of a version 1 file in a way that leaves its keys unchanged."""
    if not isinstance(facts, dict):
        raise CacheError("has an encoder that is not an object")
    groups = {
        group: {name: fact for name, fact in facts.items() if name in names}
        for group, names in _VERSION_1_GROUPS.items()
    }
    grouped = frozenset().union(*groups.values())
    shared = {name: fact for name, fact in facts.items() if name not in grouped}
    return EncoderFacts(shared=shared, **groups)


def _assemble(
    attributes: Mapping[str, Any], encoder: EncoderFacts, arrays: Mapping[str, Any]
) -> FeatureCache:
    """Build a cache from what was read, and check it against the attributes."""
    class_names = _decode(arrays["class_names"])
    templates = _decode(arrays["text/templates"]) if "text/templates" in arrays else ()
    cache = FeatureCache(
        dataset=attributes["dataset"],
        client=attributes["client"],
        encoder=encoder,
        logit_scale=float(attributes["logit_scale"]),
        normalized=bool(attributes["normalized"]),
        image_features=arrays["image/features"],
        labels=arrays["image/labels"],
        ids=_decode(arrays["image/ids"]),
        digests=arrays["image/digests"],
        class_names=class_names,
        templates=templates,
        text_features=arrays.get("text/features", np.empty((len(class_names), 0, 0), np.float32)),
    )
    if cache.key != attributes["key"]:
        raise CacheError("has a key that does not match its encoder")
    if attributes["embed_dim"] != cache.embed_dim:
        raise CacheError(
            f"has embed_dim {attributes['embed_dim']}, but features {cache.embed_dim} wide"
        )
    return cache


def _attribute(file: h5py.File, name: str, kinds: type | tuple[type, ...]) -> Any:
    if name not in file.attrs:
        raise CacheError(f"lacks the attribute {name!r}")
    value = file.attrs[name]
    if not isinstance(value, kinds):
        raise CacheError(f"has an attribute {name!r} of type {type(value).__name__}")
    return value.decode() if isinstance(value, bytes) else value


def _check_encoding(attributes: Mapping[str, Any], version: int) -> None:
    kind, encoded = attributes["encoding-type"], attributes["encoding-version"]
    if (kind, encoded) != (ENCODING_TYPE, str(version)):
        raise CacheError(
            f"contains {kind!r} version {encoded!r}, but its first block declares "
            f"{ENCODING_TYPE!r} version {version}"
        )


def _dataset(file: h5py.File, name: str, path: str) -> Any:
    """Read the dataset that the schema calls `name` from `path` in the file.

    Links and external storage are refused, since they could make a cache read other files.
    """
    parent: Any = file
    for child in path.split("/"):
        if not isinstance(parent, h5py.Group) or not isinstance(
            parent.get(child, getlink=True), h5py.HardLink
        ):
            raise CacheError(f"has no {path}, or only a link to it")
        parent = parent[child]
    dataset = parent
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise CacheError(f"stores {path} outside the file")
    dtypes, dimensions = DATASETS[name]
    dtype = dataset.dtype.kind if dataset.dtype.kind == "S" else dataset.dtype.str
    if dtype not in dtypes or dataset.ndim != dimensions:
        raise CacheError(
            f"has {path} as {dataset.ndim}-dimensional {dtype}, but "
            f"{dimensions}-dimensional {' or '.join(dtypes)} is expected"
        )
    # HDF5 allocates whole chunks, even if the dataset fills only a small part of one.
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    claimed = max(dataset.nbytes, chunk)
    if claimed > file.id.get_filesize():
        raise CacheError(f"declares {claimed} bytes of {path}, more than the file has")
    if _filters(dataset) - {h5py.h5z.FILTER_FLETCHER32}:
        # A small compressed file could fill the memory.
        raise CacheError(f"stores {path} compressed, which fedclip never does")
    # HDF5 converts to float32 while it reads, without a second copy.
    return (dataset.astype(np.float32) if dtype == "<f2" else dataset)[()]


def _filters(dataset: h5py.Dataset) -> set[int]:
    created = dataset.id.get_create_plist()
    return {created.get_filter(number)[0] for number in range(created.get_nfilters())}


def _decode(strings: Any) -> tuple[str, ...]:
    return tuple(string.decode() for string in strings.tolist())
