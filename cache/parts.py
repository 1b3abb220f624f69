"""Vectors that an extraction has made and no finished file holds yet.

A part is a few hundred rows, written whole: a killed extraction loses the part at
hand and no more. Parts are kept by the images' content, so it does not matter in
which order, or for which client, the next extraction asks for them.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .files import replacing
from .schema import BLOCK_SIZE, DIGEST_SIZE, pack_block, unpack_block

PARTS = "parts"
SUFFIX = ".part"

Vector = npt.NDArray[np.float32]


def write_part(folder: Path, digests: Sequence[bytes], vectors: Sequence[Vector]) -> None:
    """Write a part below a cache's `folder`: whole and fsynced, or not at all.

    Args:
        folder: The cache's folder, whose key the vectors belong to.
        digests: `content_digest` of each image, 16 bytes.
        vectors: (D,) float32 each, as many as `digests`.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE))
    np.save(buffer, np.stack(vectors))
    body = buffer.getvalue()
    sha256 = hashlib.sha256(body)
    place = folder / PARTS
    place.mkdir(exist_ok=True)
    with replacing(place / f"{sha256.hexdigest()[:32]}{SUFFIX}") as temporary:
        temporary.write_bytes(pack_block(sha256.digest()) + body)


def read_parts(folder: Path) -> dict[bytes, Vector]:
    """Read a cache's parts: vectors by content. A damaged part is passed over, as if lost."""
    vectors: dict[bytes, Vector] = {}
    for path in sorted((folder / PARTS).glob(f"[!.]*{SUFFIX}")):
        try:
            vectors |= _read_part(path.read_bytes())
        except (CacheError, ValueError, EOFError):
            continue
    return vectors


def _read_part(content: bytes) -> dict[bytes, Vector]:
    body = content[BLOCK_SIZE:]
    if unpack_block(content[:BLOCK_SIZE]) != hashlib.sha256(body).digest():
        raise CacheError("is damaged")
    buffer = io.BytesIO(body)
    digests = np.load(buffer, allow_pickle=False)
    vectors = np.load(buffer, allow_pickle=False)
    return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}


def remove_parts(folder: Path) -> None:
    """Delete a cache's parts, and what a killed writer left of one."""
    place = folder / PARTS
    if place.is_dir():
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
