"""Reads a client's file, trusting nothing in it before it is checked."""

import json
import math
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .common.errors import CacheError, FedclipError
from .key import image_key
from .schema import (
    ATTRIBUTES,
    BLOCK_SIZE,
    DATASETS,
    ENCODING_TYPE,
    FORMAT_VERSION,
    FeatureCache,
    body_sha256,
    unpack_block,
)


def read_cache(path: Path) -> FeatureCache:
    """Read a client's file into memory.

    Every byte is checked against the file's own hash before HDF5 parses anything,
    and then every shape, dtype and value, so what comes back can be used as it is.

    Raises:
        CacheError: there is no such file, it is no cache, of another format version,
            truncated, altered, or its parts contradict each other. The message
            names the file.
    """
    try:
        with path.open("rb") as raw:
            _check_bytes(raw)
            return _parse(raw)
    except FileNotFoundError:
        raise CacheError(f"{path}: there is no such file") from None
    except FedclipError as error:
        reason = " ".join(str(error).split())
        raise CacheError(
            f"{path}: {reason}; remove the cache (fedclip cache rm) or put back a whole copy"
        ) from None


def _check_bytes(raw: BufferedReader) -> None:
    expected = unpack_block(raw.read(BLOCK_SIZE))
    if body_sha256(raw) != expected:
        raise CacheError("is truncated or altered: its bytes do not match its SHA-256")


def _parse(raw: BufferedReader) -> FeatureCache:
    # A valid hash says that the file is as it was written, not that we wrote it; so
    # whatever HDF5 raises on it is the file's fault.
    try:
        raw.seek(0)
        with h5py.File(raw, "r") as file:
            return _features(file)
    except FedclipError:
        raise
    except Exception as error:
        raise CacheError(f"cannot be parsed as a cache ({error})") from None


def _features(file: h5py.File) -> FeatureCache:
    attributes = {name: _attribute(file, name, kinds) for name, kinds in ATTRIBUTES.items()}
    _check_encoding(attributes)
    budget = file.id.get_filesize()
    arrays = {name: _dataset(file, name, budget) for name in DATASETS}
    encoder = json.loads(attributes["encoder"])
    if not isinstance(encoder, dict) or image_key(encoder) != attributes["key"]:
        raise CacheError("has a key that is not that of its encoder")
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
        class_names=_decode(arrays["text/class_names"]),
        templates=_decode(arrays["text/templates"]),
        text_features=arrays["text/features"],
    )
    if attributes["embed_dim"] != cache.embed_dim:
        raise CacheError(
            f"says embed_dim {attributes['embed_dim']}, and its features have {cache.embed_dim}"
        )
    return cache


def _attribute(file: h5py.File, name: str, kinds: type | tuple[type, ...]) -> Any:
    if name not in file.attrs:
        raise CacheError(f"lacks the attribute {name!r}")
    value = file.attrs[name]
    if not isinstance(value, kinds):
        raise CacheError(f"has a {type(value).__name__} as its attribute {name!r}")
    return value.decode() if isinstance(value, bytes) else value


def _check_encoding(attributes: dict[str, Any]) -> None:
    kind, version = attributes["encoding-type"], attributes["encoding-version"]
    if (kind, version) != (ENCODING_TYPE, str(FORMAT_VERSION)):
        raise CacheError(
            f"holds {kind!r} version {version!r}, and this fedclip reads {ENCODING_TYPE!r} "
            f"version {FORMAT_VERSION}"
        )


def _dataset(file: h5py.File, name: str, budget: int) -> Any:
    # Links and storage outside the file would make a cache read other files.
    group, leaf = name.split("/")
    for parent, child in ((file, group), (file[group], leaf)):
        if not isinstance(parent, h5py.Group) or not isinstance(
            parent.get(child, getlink=True), h5py.HardLink
        ):
            raise CacheError(f"has no {name} of its own")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise CacheError(f"keeps {name} outside the file")
    dtypes, dimensions = DATASETS[name]
    dtype = dataset.dtype.kind if dataset.dtype.kind == "S" else dataset.dtype.str
    if dtype not in dtypes or dataset.ndim != dimensions:
        raise CacheError(
            f"has {name} as {dataset.ndim}-dimensional {dtype}, where "
            f"{dimensions}-dimensional {' or '.join(dtypes)} belongs"
        )
    # HDF5 takes memory for a whole chunk, however little of it belongs to the data set.
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    claimed = max(dataset.nbytes, chunk)
    if claimed > budget:
        raise CacheError(f"claims {claimed} bytes of {name}, more than the file has")
    if _filters(dataset) - {h5py.h5z.FILTER_FLETCHER32}:
        # A little of it could fill the memory, chunk by chunk.
        raise CacheError(f"keeps {name} compressed, as no fedclip does")
    # HDF5 widens as it reads, so there is no second copy.
    return (dataset.astype(np.float32) if dtype == "<f2" else dataset)[()]


def _filters(dataset: h5py.Dataset) -> set[int]:
    created = dataset.id.get_create_plist()
    return {created.get_filter(number)[0] for number in range(created.get_nfilters())}


def _decode(strings: Any) -> tuple[str, ...]:
    return tuple(string.decode() for string in strings.tolist())
