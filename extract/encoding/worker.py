"""One process's share of the encoding: batches of pixels in, parts on disk out."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ...cache import FedclipError
from ...cache.common.progress import Progress, no_progress
from ...cache.parts import write_part
from ..datasets.base import Source
from ..encoders.base import ImageEncoder, Launched
from .distributed import RankFailedError
from .loader import PixelBatch, is_out_of_memory, load_batches

# What a killed extraction loses at most: a dozen seconds on a CPU, none on a GPU.
PART_ROWS = 256

WAITING = "waiting for images"
ENCODING = "encoding"
WRITING = "writing"


@dataclass(frozen=True)
class Task:
    """An image to encode: its number in the dataset, its client and its source."""

    number: int
    client: str
    source: Source


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an image.

    Attributes:
        digest: Its content hash.
        problem: Why it has no vector, or an empty string.
        unread: Whether its bytes could not be read.
        encoded: Whether it was encoded now, rather than known by its content.
    """

    digest: bytes
    problem: str = ""
    unread: bool = False
    encoded: bool = True


Outcomes = Mapping[int, Outcome]


@dataclass(frozen=True)
class Receipt:
    """Images that are done, their vectors on disk.

    Attributes:
        outcomes: What became of each, by number.
        digests: Those of the images that have vectors, in the order of the part's rows.
        part: The part with these vectors; None if no image has one.
    """

    outcomes: Outcomes
    digests: Sequence[bytes]
    part: Path | None


class Clock:
    """Adds up wall-clock seconds by what they were spent on.

    Attributes:
        seconds: Seconds by activity, in the order in which they were first begun.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Add what happens inside to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent


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
        check: Called after each batch; raises where another rank failed.
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
        check: Callable[[], None] = lambda: None,
    ) -> None:
        if encoder.device.type == "cpu":
            keep_freed_memory()
        self._encoder = encoder
        self._check = check
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

        An interrupt (Ctrl-C), or another rank that fails, keeps what was encoded.

        Raises:
            OSError: a part cannot be written.
            FedclipError: a worker process was killed, there is no memory for a batch, or another
                rank failed.
        """
        with _memory_for(self._batch_size), _Keeper(self._folder) as keeper:
            try:
                for batch, vectors in self._encoded():
                    keeper.add(batch, vectors, self._tasks)
                    self._progress.advance(batch)
                    self._check()
                    if keeper.full:
                        yield from self._kept(keeper)
            except (KeyboardInterrupt, RankFailedError):
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
        self._outcomes: dict[int, Outcome] = {}
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._done = 0
        self._writing: Future[Receipt] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._thread.shutdown()

    @property
    def full(self) -> bool:
        return len(self._outcomes) >= PART_ROWS

    def add(
        self, batch: PixelBatch, vectors: npt.NDArray[np.float32], tasks: Sequence[Task]
    ) -> None:
        """Take a batch's rows; those past its last image are padding."""
        rows = len(batch.digests)
        numbers = [task.number for task in tasks[self._done : self._done + rows]]
        outcomes = map(Outcome, batch.digests, batch.problems, batch.unread)
        self._outcomes.update(zip(numbers, outcomes, strict=True))
        self._vectors.append(vectors[:rows])
        self._done += rows

    def keep(self) -> Receipt | None:
        """Begin to write what was gathered; first wait for what is being written, if anything."""
        written = self._writing.result() if self._writing is not None else None
        self._writing = None
        if self._outcomes:
            vectors = np.concatenate(self._vectors)
            self._writing = self._thread.submit(_write, self._folder, self._outcomes, vectors)
            self._outcomes, self._vectors = {}, []
        return written


def _write(folder: Path, outcomes: Outcomes, vectors: npt.NDArray[np.float32]) -> Receipt:
    usable = [not outcome.problem for outcome in outcomes.values()]
    digests = [outcome.digest for outcome in outcomes.values() if not outcome.problem]
    part = write_part(folder, digests, vectors[usable]) if digests else None
    return Receipt(outcomes, digests, part)


# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have what is freed kept for the next allocation, whatever its size.

    glibc gives blocks over 32 MB back to the system, as an encoder's operations on a CPU
    use them, and has every page of the next one zeroed: a seventh of the encoder's time.
    The process then holds what it once needed at most. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # every block is of the heap,
        mallopt(_TRIM_THRESHOLD, _MOST)  # and the heap stays as it is


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
