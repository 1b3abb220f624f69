"""Decodes samples, images or texts, to batches, in worker processes or threads."""

import errno
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ...cache import FedclipError
from ...cache.schema import content_digest
from ..datasets.base import Source
from ..datasets.formats import foreign_format
from ..encoders.transforms import Decoder, UnusableError

logger = logging.getLogger(__name__)

# Seconds that reading a batch of images may take; a stuck worker would otherwise hang forever.
PATIENCE = 600

_ROOM = "free /dev/shm, or give the container more (docker run --shm-size 8g)"

# Parts of torch's messages when it runs out of memory but raises a plain RuntimeError.
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "CUDA error: out of memory",
)


@dataclass(frozen=True)
class Decoded:
    """A decoded sample.

    Attributes:
        inputs: What the encoder takes, such as (3, H, W) pixels; zeros if there is a `problem`.
        digest: `content_digest` of the bytes that were decoded.
        problem: Why the sample is not usable, or an empty string.
        unread: Whether its bytes could not be read, for example from a disconnected disk.
    """

    inputs: Tensor
    digest: bytes
    problem: str = ""
    unread: bool = False


@dataclass(frozen=True)
class Batch:
    """A batch, padded to a fixed size.

    Attributes:
        inputs: (B, ...) what the encoder takes; rows past the last sample are zeros.
        digests: Content hash of each sample, at most B.
        problems: Why a sample is not usable, or an empty string; as many as `digests`.
        unread: Whether a sample's bytes could not be read; as many as `digests`.
        piped: Whether a worker process sent it through a pipe, for lack of shared memory.
    """

    inputs: Tensor
    digests: tuple[bytes, ...]
    problems: tuple[str, ...]
    unread: tuple[bool, ...]
    piped: bool = False

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[object, ...]]:
        # Pickling a tensor moves it to shared memory; an array goes through the pipe.
        shared = self.inputs.is_shared()  # type: ignore[no-untyped-call]
        inputs = self.inputs if shared else self.inputs.numpy()
        return _received, (inputs, self.digests, self.problems, self.unread)

    def pin_memory(self) -> "Batch":
        """Copy the inputs to pinned memory, from which a GPU can copy while it computes."""
        return replace(self, inputs=self.inputs.pin_memory())


def _received(
    inputs: Tensor | npt.NDArray[Any],
    digests: tuple[bytes, ...],
    problems: tuple[str, ...],
    unread: tuple[bool, ...],
) -> Batch:
    piped = not isinstance(inputs, Tensor)
    return Batch(torch.as_tensor(inputs), digests, problems, unread, piped)


class _Samples(Dataset[Decoded]):
    def __init__(self, sources: Sequence[Source], decode: Decoder, blank: Tensor) -> None:
        self.sources = sources
        self.decode = decode
        self.blank = blank

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Decoded:
        content = b""
        try:
            content = self.sources[index].read()
            return Decoded(self.decode(content), content_digest(content))
        except Exception as error:  # broken files raise errors of many types
            return Decoded(
                self.blank,
                content_digest(content),
                describe(error, content),
                _is_unread(error),
            )


def describe(error: Exception, content: bytes) -> str:
    """Describe in a few words why a file could not be decoded."""
    if isinstance(error, OSError) and _is_unread(error):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, MemoryError):
        return "needs more memory than is available"
    if not content:
        return "is empty"
    if isinstance(error, UnusableError):
        return str(error)
    if type(error).__name__ == "UnidentifiedImageError":
        if name := foreign_format(content):
            return f"is {name}, which Pillow here cannot read"
        return "is not an image that Pillow can read"
    return f"cannot be decoded: {' '.join(str(error).split())[:200] or type(error).__name__}"


def _is_unread(error: Exception) -> bool:
    """Return whether the system could not read a file, as opposed to a failure to decode it."""
    return isinstance(error, OSError) and bool(error.strerror)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory, here, on a GPU or in a worker process."""
    known = isinstance(error, torch.OutOfMemoryError)
    return known or any(words in str(error) for words in _NO_MEMORY)


class _Collate:
    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __call__(self, samples: Sequence[Decoded]) -> Batch:
        first = samples[0].inputs
        inputs = first.new_zeros(self.batch_size, *first.shape)
        if get_worker_info() is not None:
            inputs = _shared(inputs)
        for row, sample in zip(inputs, samples, strict=False):
            row.copy_(sample.inputs)
        return Batch(
            inputs,
            tuple(sample.digest for sample in samples),
            tuple(sample.problem for sample in samples),
            tuple(sample.unread for sample in samples),
        )


def _shared(inputs: Tensor) -> Tensor:
    """Move a batch to shared memory, unless it is full; containers often have only 64 MB."""
    with suppress(RuntimeError):
        inputs.share_memory_()  # type: ignore[no-untyped-call]
    return inputs


def _ignore_interrupts(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def load_batches(
    sources: Sequence[Source],
    decode: Decoder,
    blank: Tensor,
    batch_size: int,
    workers: int,
    *,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Decode `sources` in order, `batch_size` at a time, in `workers` processes.

    The processes start at once, not when the first batch is requested. The batches do not
    depend on the number of workers. Memory is bounded: each worker is at most two batches
    ahead.

    Without workers, threads of this process decode each batch when it is requested. That is
    fastest if an encoder computes on the same cores: a decoder that runs at the same time on
    one core would delay the encoder's threads on all of them.
    """
    samples, collate = _Samples(sources, decode, blank), _Collate(batch_size)
    if workers and not _has_room_for_queues(workers):
        logger.warning(
            "shared memory is full, so threads decode the images in place of processes; %s", _ROOM
        )
        workers = 0
    if not workers:
        batches = _decoded_by_threads(samples, collate)
        return (batch.pin_memory() for batch in batches) if pinned else batches
    loader = DataLoader(
        samples,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pinned,
        timeout=PATIENCE,
    )
    return _explained(iter(loader))


def _has_room_for_queues(workers: int) -> bool:
    """Return whether the locks of a DataLoader's queues, a page each, fit into shared memory."""
    try:
        _ = [multiprocessing.Queue() for _ in range(workers + 2)]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


def _decoded_by_threads(samples: _Samples, collate: _Collate) -> Iterator[Batch]:
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for first in range(0, len(samples), collate.batch_size):
            rows = range(first, min(first + collate.batch_size, len(samples)))
            decoded = list(pool.map(samples.__getitem__, rows))
            torch.set_num_threads(threads)  # the initializer of the pool's threads set it to 1
            yield collate(decoded)


def _explained(batches: Iterator[Batch]) -> Iterator[Batch]:
    warned = False
    try:
        for batch in batches:
            if batch.piped and not warned:
                warned = True
                logger.warning(
                    "shared memory is full, so images come through a pipe, which is slower; %s",
                    _ROOM,
                )
            yield batch
    except RuntimeError as error:
        # DataLoader raises this if a worker was killed, for example for lack of memory, or
        # cannot pass on its batch, for lack of shared memory.
        if "DataLoader" not in str(error) or is_out_of_memory(error):
            raise
        raise FedclipError(
            "--workers: a process that decodes samples was killed or is stuck, probably for lack "
            "of (shared) memory; use --workers 0 or a smaller --batch-size"
        ) from None
