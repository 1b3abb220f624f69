"""Vectors computed so far, stored by the content of their images.

A part contains a few hundred vectors that are not in a client's file yet. Each part is written
whole, so a killed extraction loses only the part in progress. Which process wrote a part, in
which order and for which client does not matter.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .common.errors import CacheError
from .common.files import replacing
from .reader import read_cache
from .schema import BLOCK_SIZE, DIGEST_SIZE, FeatureCache, pack_block, unpack_block

PARTS = "parts"
SUFFIX = ".part"

Vectors = npt.NDArray[np.float32]


def write_part(folder: Path, digests: Sequence[bytes], vectors: Vectors) -> Path:
    """Write a part below a cache's `folder`: whole and fsynced, or not at all.

    Args:
        folder: The cache's folder; the vectors must belong to its key.
        digests: `content_digest` of each image, 16 bytes.
        vectors: (N, D) float32, as many rows as `digests`.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE))
    np.save(buffer, vectors)
    body = buffer.getvalue()
    sha256 = hashlib.sha256(body)
    place = folder / PARTS
    place.mkdir(exist_ok=True)
    path = place / f"{sha256.hexdigest()[:32]}{SUFFIX}"
    with replacing(path) as temporary:
        temporary.write_bytes(pack_block(sha256.digest()) + body)
    return path


def read_part(path: Path) -> tuple[list[bytes], Vectors]:
    """Read a part: the images' digests, and their (N, D) float32 vectors.

    Raises:
        CacheError: the part is damaged.
    """
    content = path.read_bytes()
    body = content[BLOCK_SIZE:]
    _, expected = unpack_block(content[:BLOCK_SIZE])
    if expected != hashlib.sha256(body).digest():
        raise CacheError(f"{path}: is damaged")
    buffer = io.BytesIO(body)
    digests = np.load(buffer, allow_pickle=False)
    vectors: Vectors = np.load(buffer, allow_pickle=False)
    return [digest.tobytes() for digest in digests], vectors


def find_parts(folder: Path) -> list[Path]:
    """List the parts below a cache's `folder`."""
    return sorted((folder / PARTS).glob(f"[!.]*{SUFFIX}"))


def remove_parts(folder: Path) -> None:
    """Delete a cache's parts, including unfinished ones of a killed writer."""
    place = folder / PARTS
    if place.is_dir():
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


class KnownVectors:
    """The vectors that a cache already has, in its clients' files and in parts.

    Only their locations are kept in memory; vectors are read on request, one file at a time.

    Attributes:
        width: Width of the vectors gathered last, D; 0 before the first.
    """

    def __init__(self) -> None:
        self.width = 0
        self._places: dict[bytes, tuple[Path, int]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add_client(self, path: Path, cache: FeatureCache) -> None:
        """Add the vectors of `cache`, the client's file at `path`."""
        self._add(path, _digests(cache))

    def add_part(self, path: Path, digests: Sequence[bytes] | None = None) -> None:
        """Add the vectors of the part at `path`.

        Args:
            path: The part.
            digests: Digests of its images, in order; read from the part if omitted.

        Raises:
            CacheError: the part is read and is damaged.
        """
        self._add(path, read_part(path)[0] if digests is None else digests)

    def gather(self, digests: Sequence[bytes]) -> Vectors:
        """Read the vectors of known images: (N, D) float32, in the order of `digests`.

        Each file is read only once, whatever the order of `digests`.

        Args:
            digests: Digests of known images, at least one.

        Raises:
            CacheError: a file is damaged or does not contain the expected images.
        """
        rows: dict[Path, list[tuple[int, int]]] = {}
        for row, digest in enumerate(digests):
            path, place = self._places[digest]
            rows.setdefault(path, []).append((row, place))
        vectors = np.empty((0, 0), np.float32)
        for path, pairs in rows.items():
            there, found = read_part(path) if path.suffix == SUFFIX else _read_client(path)
            if any(there[place : place + 1] != [digests[row]] for row, place in pairs):
                raise CacheError(f"{path}: does not contain the expected images; extract again")
            if not vectors.size:
                self.width = found.shape[1]
                vectors = np.empty((len(digests), self.width), np.float32)
            to, places = np.array(pairs).T
            vectors[to] = found[places]
        return vectors

    def _add(self, path: Path, digests: Sequence[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._places[digest] = path, row


def _digests(cache: FeatureCache) -> list[bytes]:
    return [digest.tobytes() for digest in cache.digests]


def _read_client(path: Path) -> tuple[list[bytes], Vectors]:
    cache = read_cache(path)
    return _digests(cache), cache.image_features
