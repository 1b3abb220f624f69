"""Writes each client's features to a finished file."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .common.files import replacing
from .key import canonical_json
from .schema import (
    BLOCK_SIZE,
    ENCODING_TYPE,
    FORMAT_VERSION,
    ROWS_PER_CHUNK,
    FeatureCache,
    body_sha256,
    pack_block,
)


def write_cache(cache: FeatureCache, path: Path) -> None:
    """Write `cache` to `path`: whole, checksummed and fsynced, or not at all.

    Equal caches are written as equal bytes: a file contains no timestamp.
    """
    write_caches([(path, cache)])


def write_caches(caches: Iterable[tuple[Path, FeatureCache]]) -> None:
    """Write several caches to their paths, none of which changes until all are written.

    Only one cache at a time is in memory.
    """
    with ExitStack() as replacements:
        for path, cache in caches:
            _write(cache, replacements.enter_context(replacing(path)))


def _write(cache: FeatureCache, path: Path) -> None:
    with FileIO(path, "w+") as raw:
        patient = _Patient(raw)
        try:
            with h5py.File(patient, "w", userblock_size=BLOCK_SIZE) as file:
                _write_attributes(file, cache)
                _write_datasets(file, cache)
        finally:
            if patient.problem is not None:
                raise patient.problem
        sha256 = body_sha256(raw)
        raw.seek(0)
        raw.write(pack_block(sha256))


class _Patient:
    """Defers write errors such as ENOSPC until HDF5 has closed the file.

    Raising inside HDF5's callbacks crashes the process.

    Attributes:
        problem: The first error; nothing is written after it.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw = raw
        self.problem: OSError | None = None
        self.read, self.readinto = raw.read, raw.readinto
        self.seek, self.tell = raw.seek, raw.tell

    def write(self, content: bytes) -> int:
        self._attempt(self._write_all, content)
        return len(content)

    def _write_all(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._raw.write(left) :]

    def truncate(self, size: int) -> int:
        self._attempt(self._raw.truncate, size)
        return size

    def flush(self) -> None:
        """Do nothing, since writes are not buffered."""

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        if self.problem is None:
            try:
                action(*arguments)
            except OSError as error:
                self.problem = error


def _fixed_length(strings: Sequence[str]) -> tuple[npt.NDArray[np.bytes_], Any]:
    """Encode as fixed-length UTF-8, since HDF5 does not checksum variable-length strings."""
    encoded = [string.encode() for string in strings]
    dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
    return np.array(encoded, dtype=dtype), dtype


def _write_attributes(file: h5py.File, cache: FeatureCache) -> None:
    strings = {
        "encoding-type": ENCODING_TYPE,
        "encoding-version": str(FORMAT_VERSION),
        "dataset": cache.dataset,
        "client": cache.client,
        "key": cache.key,
        "encoder": canonical_json(cache.encoder.groups),
    }
    for name, string in strings.items():
        array, dtype = _fixed_length([string])
        file.attrs.create(name, array[0], dtype=dtype)
    file.attrs["embed_dim"] = np.int64(cache.embed_dim)
    file.attrs["logit_scale"] = np.float64(cache.logit_scale)
    file.attrs["normalized"] = np.bool_(cache.normalized)


def _write_datasets(file: h5py.File, cache: FeatureCache) -> None:
    arrays = {
        "image/features": cache.image_features,
        "image/labels": cache.labels,
        "image/ids": _fixed_length(cache.ids)[0],
        "image/digests": cache.digests,
        "class_names": _fixed_length(cache.class_names)[0],
    }
    if cache.templates:
        arrays["text/templates"] = _fixed_length(cache.templates)[0]
        arrays["text/features"] = cache.text_features
    for name, array in arrays.items():
        chunks = (min(len(array), ROWS_PER_CHUNK), *array.shape[1:])
        file.create_dataset(name, data=array, chunks=chunks, fletcher32=True, track_times=False)
