"""The contents of a client's cache file: names, shapes, dtypes, versions.

The first 512 bytes are HDF5's user block, which HDF5 leaves to the application:
a magic, the format version and the SHA-256 of every byte after the block. `ATTRIBUTES`
and `DATASETS` describe the HDF5 part as it is written, and `FeatureCache` describes it in
memory. Only the reader knows earlier versions.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any

import numpy as np
import numpy.typing as npt

from .common.errors import CacheError
from .common.files import check_client, check_name
from .common.text import counted, flaw, nfc
from .key import EncoderFacts, image_key, text_key

ENCODING_TYPE = "fedclip-features"

# Files are written in this version. All versions from 1 on are read.
FORMAT_VERSION = 2

BLOCK_SIZE = 512
MAGIC = b"\x89FEDCLIP\r\n\x1a\n"
_BLOCK = struct.Struct(f"<{len(MAGIC)}sI32s")

DIGEST_SIZE = 16
ROWS_PER_CHUNK = 256
ROWS_AT_ONCE = 8192

# The logit scale that is recorded for an encoder without one, and the one that CLIP was trained to
# (Radford et al. 2021, section 2.5), which is then used in its place.
NO_SCALE = 1.0
CLIP_SCALE = 100.0

# name -> the types that h5py may return; strings are written as fixed-length UTF-8.
_TEXT = (bytes, str)
ATTRIBUTES: Mapping[str, type | tuple[type, ...]] = {
    "encoding-type": _TEXT,
    "encoding-version": _TEXT,
    "dataset": _TEXT,
    "client": _TEXT,
    "key": _TEXT,
    "embed_dim": np.integer,
    "logit_scale": np.floating,
    "normalized": np.bool_,
    "encoder": _TEXT,
}

# name -> (dtypes it may have, number of dimensions); "S" is fixed-length UTF-8.
DATASETS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "image/features": (("<f4", "<f2"), 2),
    "image/labels": (("<i4",), 1),
    "image/ids": (("S",), 1),
    "image/digests": (("|u1",), 2),
    "class_names": (("S",), 1),
    "text/templates": (("S",), 1),
    "text/features": (("<f4",), 3),
}

# The group of class texts, which is absent if a cache has none.
TEXT = "text"
TEXT_DATASETS = ("text/templates", "text/features")


def content_digest(content: bytes) -> bytes:
    """Hash the bytes of an image or of a row: BLAKE2b, 128 bits."""
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


def content_sha256(
    client: str,
    class_names: Sequence[str],
    ids: Sequence[str],
    labels: npt.NDArray[np.int32],
    digests: bytes,
) -> str:
    """Hash what identifies a client's rows, in their order: SHA-256, 64 hex digits."""
    digest = hashlib.sha256()
    for names in ((client,), class_names, ids):
        digest.update(f"{len(names)}\0".encode())
        digest.update("\0".join(names).encode())
    digest.update(labels.tobytes())
    digest.update(digests)
    return digest.hexdigest()


def body_sha256(file: BufferedReader | BufferedRandom | FileIO) -> bytes:
    """Hash everything after the user block of an open cache file."""
    file.seek(BLOCK_SIZE)
    return hashlib.file_digest(file, "sha256").digest()


def pack_block(sha256: bytes) -> bytes:
    """Build the user block: magic, version, hash, zeros."""
    return _BLOCK.pack(MAGIC, FORMAT_VERSION, sha256).ljust(BLOCK_SIZE, b"\0")


def unpack_block(block: bytes) -> tuple[int, bytes]:
    """Read the format version and the hash from a user block.

    Raises:
        CacheError: the block is not a cache file's, has an unknown version, or was altered.
    """
    if len(block) < BLOCK_SIZE or not block.startswith(MAGIC):
        raise CacheError("is not a fedclip cache file, or its first block is damaged")
    _, version, sha256 = _BLOCK.unpack_from(block)
    if not 1 <= version <= FORMAT_VERSION:
        raise CacheError(
            f"has cache format version {version}, but this fedclip only reads versions 1 to "
            f"{FORMAT_VERSION}"
        )
    if any(block[_BLOCK.size :]):
        raise CacheError("is damaged: its first block was altered")
    return version, bytes(sha256)


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCache:
    """One client's features, which stage one writes and stage two reads.

    Without class texts (P = 0) `text_features` is (C, 0, 0). Names are composed (Unicode's NFC)
    on construction.

    Attributes:
        dataset: Name of the dataset.
        client: Name of the client, unique within a cache.
        encoder: Facts of the encoder that made the vectors; `key` is computed from them.
        logit_scale: The encoder's ``exp(logit_scale)``, positive; 1 if the encoder has none.
        normalized: Whether the image features have norm 1; raw ones do not.
        image_features: (N, D) float32, as the encoder returned them.
        labels: (N,) int32, indices into `class_names`.
        ids: N strings, the images' paths below the dataset's root.
        digests: (N, 16) uint8, `content_digest` of each image.
        class_names: C strings.
        templates: P prompt templates such as ``a picture of a {}``.
        text_features: (C, P, T) float32, as the encoder returned them. T is D for an encoder
            that compares images with texts.

    Raises:
        CacheError: on construction, if the parts contradict each other.
    """

    dataset: str
    client: str
    encoder: EncoderFacts
    logit_scale: float
    normalized: bool
    image_features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    ids: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    text_features: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        composed = {
            "dataset": check_name(self.dataset, "dataset"),
            "client": check_client(self.client),
            "class_names": tuple(map(nfc, self.class_names)),
            "templates": tuple(map(nfc, self.templates)),
        }
        for name, value in composed.items():
            object.__setattr__(self, name, value)
        self._check_shapes()
        self._check_values()

    def __repr__(self) -> str:
        return (
            f"<features of {self.dataset}, client {self.client}: "
            f"{counted(len(self.labels), 'row')} of {counted(self.embed_dim, 'feature')}, "
            f"{counted(len(self.class_names), 'class', 'classes')}>"
        )

    @property
    def embed_dim(self) -> int:
        """Width of the features, D."""
        return int(self.image_features.shape[1])

    @cached_property
    def key(self) -> str:
        """The image key: caches with equal keys have comparable features."""
        return image_key(self.encoder)

    @cached_property
    def text_key(self) -> str:
        """The text key: caches with equal keys have the same class texts in the same order."""
        return text_key(self.encoder, self.class_names, self.templates)

    @cached_property
    def content(self) -> str:
        """SHA-256, 64 hex digits, of the client's name, classes, ids, labels and images."""
        return content_sha256(
            self.client, self.class_names, self.ids, self.labels, self.digests.tobytes()
        )

    def _check_shapes(self) -> None:
        kinds: dict[str, tuple[npt.NDArray[Any], type, int]] = {
            "image/features": (self.image_features, np.float32, 2),
            "image/labels": (self.labels, np.int32, 1),
            "image/digests": (self.digests, np.uint8, 2),
            "text/features": (self.text_features, np.float32, 3),
        }
        for name, (array, dtype, dimensions) in kinds.items():
            if array.dtype != dtype or array.ndim != dimensions:
                raise CacheError(
                    f"has {name} of shape {array.shape} and dtype {array.dtype}, but "
                    f"{dimensions} dimensions of {np.dtype(dtype)} are expected"
                )
        rows, width = self.image_features.shape
        classes, templates = len(self.class_names), len(self.templates)
        text_width = self.text_features.shape[2] if templates else 0
        expected = {
            "image/labels": (self.labels.shape, (rows,)),
            "image/ids": ((len(self.ids),), (rows,)),
            "image/digests": (self.digests.shape, (rows, DIGEST_SIZE)),
            "text/features": (self.text_features.shape, (classes, templates, text_width)),
        }
        for name, (shape, wanted) in expected.items():
            if shape != wanted:
                raise CacheError(f"has {name} of shape {shape}, but {wanted} is expected")
        if 0 in (rows, width, classes):
            raise CacheError(
                f"has {counted(rows, 'row')} of {counted(width, 'feature')} and "
                f"{counted(classes, 'class', 'classes')}, but none of these may be 0"
            )
        if templates and not text_width:
            raise CacheError(f"has {counted(templates, 'template')}, but their features are 0 wide")

    def _check_values(self) -> None:
        named = {"class": self.class_names, "template": self.templates, "image": self.ids}
        for what, names in named.items():
            for name in names:
                if found := flaw(name):
                    raise CacheError(f"has a {what} {name!r} {found}")
            if len(set(names)) < len(names):
                raise CacheError(f"has the {what} {_repeated(names)!r} twice")
        if not (np.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise CacheError(f"has logit_scale {self.logit_scale}, which must be positive")
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))
        if outside.size:
            row = int(outside[0])
            raise CacheError(
                f"has label {self.labels[row]} in row {row} ({self.ids[row]}), outside its "
                f"{counted(len(self.class_names), 'class', 'classes')}"
            )
        bad = np.flatnonzero(~_finite_rows(self.image_features))
        if bad.size:
            row = int(bad[0])
            raise CacheError(
                f"has NaN or Inf in the image features of {counted(bad.size, 'row')}, the first is "
                f"row {row} ({self.ids[row]})"
            )
        bad = np.flatnonzero(~np.isfinite(self.text_features).all(axis=(1, 2)))
        if bad.size:
            raise CacheError(
                f"has NaN or Inf in the text features of class {self.class_names[int(bad[0])]!r}"
            )


def _finite_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows are finite, block by block to save memory."""
    finite = np.empty(len(features), np.bool_)
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        finite[block] = np.isfinite(features[block]).all(axis=1)
    return finite


def _repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
