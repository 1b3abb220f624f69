"""Vectors that an extraction has made and no finished file holds yet.

A part is a few hundred rows, written whole: a killed extraction loses the part at
hand and no more. Parts are kept by the images' content, so it does not matter which
process wrote them, in which order, or for which client they are asked for.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .common.errors import CacheError
from .common.files import replacing
from .schema import BLOCK_SIZE, DIGEST_SIZE, pack_block, unpack_block

PARTS = "parts"
SUFFIX = ".part"

Vectors = npt.NDArray[np.float32]


def write_part(folder: Path, digests: Sequence[bytes], vectors: Vectors) -> Path:
    """Write a part below a cache's `folder`: whole and fsynced, or not at all.

    Args:
        folder: The cache's folder, whose key the vectors belong to.
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
        CacheError: it is damaged.
    """
    content = path.read_bytes()
    body = content[BLOCK_SIZE:]
    if unpack_block(content[:BLOCK_SIZE]) != hashlib.sha256(body).digest():
        raise CacheError(f"{path}: is damaged")
    buffer = io.BytesIO(body)
    digests = np.load(buffer, allow_pickle=False)
    vectors: Vectors = np.load(buffer, allow_pickle=False)
    return [digest.tobytes() for digest in digests], vectors


def find_parts(folder: Path) -> list[Path]:
    """List the parts below a cache's `folder`."""
    return sorted((folder / PARTS).glob(f"[!.]*{SUFFIX}"))


def remove_parts(folder: Path) -> None:
    """Delete a cache's parts, and what a killed writer left of one."""
    place = folder / PARTS
    if place.is_dir():
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
