"""The vectors that a cache has already: in its clients' files, and in parts.

Only where they are is kept in memory. They are read a file at a time when they are
asked for, so it takes no more memory to know a million than to know a thousand.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .parts import Vectors, read_part
from .reader import read_cache
from .schema import FeatureCache


class KnownVectors:
    """Vectors by the content of their images."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[Callable[[], Vectors], int]] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add_client(self, path: Path, cache: FeatureCache) -> None:
        """Learn what the client's file at `path` holds, which is `cache`."""
        digests = [digest.tobytes() for digest in cache.digests]
        self._add(digests, partial(_client_vectors, path))

    def add_part(self, path: Path) -> None:
        """Learn what the part at `path` holds.

        Raises:
            CacheError: it is damaged.
        """
        self._add(read_part(path)[0], partial(_part_vectors, path))

    def gather(self, digests: Sequence[bytes]) -> Vectors:
        """Read the vectors of known images: (N, D) float32, in the order of `digests`.

        Each file is read once, however its rows lie among those of others.

        Args:
            digests: At least one.
        """
        rows: dict[Callable[[], Vectors], list[tuple[int, int]]] = {}
        for row, digest in enumerate(digests):
            read, place = self._places[digest]
            rows.setdefault(read, []).append((row, place))
        vectors = np.empty((0, 0), np.float32)
        for read, pairs in rows.items():
            there = read()
            if not vectors.size:
                vectors = np.empty((len(digests), there.shape[1]), np.float32)
            to, places = np.array(pairs).T
            vectors[to] = there[places]
        return vectors

    def _add(self, digests: Sequence[bytes], read: Callable[[], Vectors]) -> None:
        for row, digest in enumerate(digests):
            self._places[digest] = read, row


def _client_vectors(path: Path) -> Vectors:
    return read_cache(path).image_features


def _part_vectors(path: Path) -> Vectors:
    return read_part(path)[1]
