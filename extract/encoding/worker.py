"""One process's share of the encoding: batches of pixels in, parts on disk out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ...cache import FedclipError
from ...cache.common.progress import Progress, no_progress
from ...cache.parts import write_part
from ..datasets.sources import Source
from ..encoders.base import ImageEncoder, Launched
from .clock import Clock
from .loader import PixelBatch, is_out_of_memory, load_batches

# What a killed extraction loses at most: a dozen seconds on a CPU, none on a GPU.
PART_ROWS = 256

WAITING = "waiting for images"
ENCODING = "encoding"
WRITING = "writing"


@dataclass(frozen=True)
class Task:
    """An image to encode: its number in the data set, its client and its source."""

    number: int
    client: str
    source: Source


@dataclass
class Receipt:
    """What became of some images, whose vectors are in one part.

    Attributes:
        numbers: The images' numbers.
        digests: Content hash of each, in hexadecimal digits.
        problems: Why an image could not be used, or an empty string.
        part: File name of the part; empty where none of the images could be used.
    """

    numbers: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    part: str = ""


class Share:
    """The images that one process encodes. Worker processes begin to decode at once.

    Args:
        encoder: What encodes them.
        folder: The cache's folder, below which parts are kept.
        tasks: The images, in order.
        batch_size: The one batch shape that the encoder sees.
        workers: Processes that decode images.
        clock: Where the time is added up.
        progress: Called after each batch, client by client.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        folder: Path,
        tasks: Sequence[Task],
        batch_size: int,
        workers: int,
        clock: Clock,
        progress: Progress = no_progress,
    ) -> None:
        self._encoder = encoder
        self._folder = folder
        self._tasks = tasks
        self._batch_size = batch_size
        self._clock = clock
        self._progress = _ClientProgress(progress, [task.client for task in tasks])
        self._batches = load_batches(
            [task.source for task in tasks],
            encoder.decode,
            encoder.pixel_shape,
            batch_size,
            min(workers, len(tasks)),
            pinned=encoder.device.type == "cuda",
        )

    def encode(self) -> Iterator[Receipt]:
        """Encode everything; a receipt comes when its part is on disk.

        An interrupt (Ctrl-C) keeps what was encoded.

        Raises:
            OSError: a part cannot be written.
            FedclipError: a worker process was killed, or there is no memory for a batch.
        """
        with _memory_for(self._batch_size), _Keeper(self._folder) as keeper:
            try:
                for batch, vectors in self._encoded():
                    keeper.add(batch, vectors, self._tasks)
                    self._progress.advance(batch)
                    if keeper.full:
                        yield from self._kept(keeper)
            except KeyboardInterrupt:
                list(self._kept(keeper))
                raise
            yield from self._kept(keeper)
            yield from self._kept(keeper)

    def _kept(self, keeper: "_Keeper") -> Iterator[Receipt]:
        with self._clock.timing(WRITING):
            receipt = keeper.keep()
        if receipt is not None:
            yield receipt

    def _encoded(self) -> Iterator[tuple[PixelBatch, npt.NDArray[np.float32]]]:
        """Encode batch by batch; a device may compute one while the one before is taken home."""
        computing: tuple[PixelBatch, Launched] | None = None
        while True:
            with self._clock.timing(WAITING):
                batch = next(self._batches, None)
            done = computing
            with self._clock.timing(ENCODING):
                computing = (batch, self._encoder.launch_images(batch.pixels)) if batch else None
                finished = (done[0], done[1].numpy()) if done else None
            if finished:
                yield finished
            if batch is None:
                return


@contextmanager
def _memory_for(batch_size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise FedclipError(
            f"batches of {batch_size} images need more memory than there is; give a smaller "
            "--batch-size, and --force if the cache was begun with this one"
        ) from None


class _Keeper:
    """Gathers rows, and writes them as parts in the background, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._receipt = Receipt()
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._done = 0
        self._writing: Future[Receipt] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._thread.shutdown()

    @property
    def full(self) -> bool:
        return len(self._receipt.numbers) >= PART_ROWS

    def add(
        self, batch: PixelBatch, vectors: npt.NDArray[np.float32], tasks: Sequence[Task]
    ) -> None:
        """Take a batch's rows; those past its last image are padding."""
        rows = len(batch.digests)
        self._receipt.numbers += [task.number for task in tasks[self._done : self._done + rows]]
        self._receipt.digests += [digest.hex() for digest in batch.digests]
        self._receipt.problems += batch.problems
        self._vectors.append(vectors[:rows])
        self._done += rows

    def keep(self) -> Receipt | None:
        """Begin to write what was gathered; first wait for what is being written, if anything."""
        written = self._writing.result() if self._writing is not None else None
        self._writing = None
        if self._receipt.numbers:
            vectors = np.concatenate(self._vectors)
            self._writing = self._thread.submit(_write, self._folder, self._receipt, vectors)
            self._receipt, self._vectors = Receipt(), []
        return written


def _write(folder: Path, receipt: Receipt, vectors: npt.NDArray[np.float32]) -> Receipt:
    usable = [not problem for problem in receipt.problems]
    digests = [
        bytes.fromhex(digest)
        for digest, wanted in zip(receipt.digests, usable, strict=True)
        if wanted
    ]
    if digests:
        receipt.part = write_part(folder, digests, vectors[usable]).name
    return receipt


class _ClientProgress:
    """Tells of each client in turn."""

    def __init__(self, progress: Progress, clients: Sequence[str]) -> None:
        self._progress = progress
        self._clients = clients
        self._totals = Counter(clients)
        self._done: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._begin_next()

    def advance(self, batch: PixelBatch) -> None:
        """Tell that a batch is done."""
        begun = self._done.total()
        clients = self._clients[begun : begun + len(batch.problems)]
        for client, problem in zip(clients, batch.problems, strict=True):
            self._done[client] += 1
            self._skipped[client] += bool(problem)
        for client in dict.fromkeys(clients):
            self._tell(client)
        self._begin_next()

    def _begin_next(self) -> None:
        begun = self._done.total()
        if begun < len(self._clients) and not self._done[self._clients[begun]]:
            self._tell(self._clients[begun])

    def _tell(self, client: str) -> None:
        skipped = f"{self._skipped[client]} skipped" if self._skipped[client] else ""
        self._progress(client, self._done[client], self._totals[client], "images", skipped)
