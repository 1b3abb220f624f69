"""Features of samples as they come, which are kept nowhere: what predictions are made from."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from ...cache.common.progress import UNKNOWN, Progress, no_progress
from ..datasets.inputs import Image
from ..encoders.base import CutsOff, SampleEncoder
from .job import default_batch_size, default_workers
from .loader import load_batches
from .worker import Clock, encode_batches, keep_freed_memory, memory_for

logger = logging.getLogger(__name__)

# Batches of a stream of unknown length that are read before worker processes, which have to be
# started for them, decode the first.
BATCHES_AT_ONCE = 64


@dataclass(frozen=True)
class EncodedImages:
    """Some images, or texts, with their features.

    Attributes:
        images: B samples that could be decoded.
        features: (B, D) float32, raw.
        digests: Content hash of each of them.
        skipped: The samples between them that could not be decoded, and why.
    """

    images: tuple[Image, ...]
    features: npt.NDArray[np.float32]
    digests: tuple[bytes, ...]
    skipped: tuple[tuple[Image, str], ...]


def encode_images(
    encoder: SampleEncoder,
    images: Iterable[Image],
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[EncodedImages]:
    """Encode images, or texts, in order, batch by batch, in memory that does not grow with them.

    Args:
        encoder: The encoder.
        images: A sequence, which worker processes decode from the start, or a stream of any
            length.
        batch_size: Size of every batch, padded if necessary; None for the device's default.
        workers: Number of processes that decode; None for the device's default.
        progress: Called after each batch.

    Raises:
        FedclipError: a worker process was killed, or a batch does not fit into memory.
    """
    if encoder.device.type == "cpu":
        keep_freed_memory()
    batch_size = batch_size or default_batch_size(encoder.device)
    workers = default_workers(encoder.device) if workers is None else workers
    total = len(images) if isinstance(images, list | tuple) else None
    at_once = total or batch_size * (BATCHES_AT_ONCE if workers else 1)
    coming, done, cut = iter(images), 0, 0
    while chunk := tuple(islice(coming, at_once)):
        batches = load_batches(
            [image.source for image in chunk],
            encoder.decode,
            encoder.blank,
            batch_size,
            min(workers, len(chunk)),
            pinned=encoder.device.type == "cuda",
        )
        begin = 0
        with memory_for(batch_size), closing(encode_batches(encoder, batches, Clock())) as encoded:
            for batch, vectors in encoded:
                some = chunk[begin : begin + len(batch.problems)]
                begin += len(some)
                vectors = vectors[: len(some)]
                problems = [
                    problem or ("" if np.isfinite(row).all() else "has features with NaN or Inf")
                    for problem, row in zip(batch.problems, vectors, strict=True)
                ]
                usable = [not problem for problem in problems]
                yield EncodedImages(
                    tuple(image for image, good in zip(some, usable, strict=True) if good),
                    vectors[usable],
                    tuple(d for d, good in zip(batch.digests, usable, strict=True) if good),
                    tuple((i, why) for i, why in zip(some, problems, strict=True) if why),
                )
                done += len(some)
                if isinstance(encoder, CutsOff):
                    cut += int(encoder.cut_off(batch.inputs)[: len(some)].sum())
                progress(
                    encoder.samples, done, UNKNOWN if total is None else total, encoder.samples
                )
    if total is None and done:
        progress(encoder.samples, done, done, encoder.samples)
    if cut:
        logger.warning(
            "%d of the %s are longer than what the encoder reads, and were cut off",
            cut,
            encoder.samples,
        )
