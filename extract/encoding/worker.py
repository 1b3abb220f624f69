"""One process's share of the encoding: from decoded batches to parts on disk."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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
from ..encoders.base import CutsOff, Launched, SampleEncoder
from .distributed import RankFailedError
from .loader import Batch, is_out_of_memory, load_batches

# The most that a killed extraction loses: a dozen seconds on a CPU, less than one on a GPU.
PART_ROWS = 256

WAITING = "waiting for input"
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
    """The outcome for an image.

    Attributes:
        digest: Its content hash.
        problem: Why it has no vector, or an empty string.
        unread: Whether its bytes could not be read.
        encoded: Whether it was encoded now; otherwise a vector for its content was known.
        cut: Whether it was found to be longer than what the encoder reads.
    """

    digest: bytes
    problem: str = ""
    unread: bool = False
    encoded: bool = True
    cut: bool = False


Outcomes = Mapping[int, Outcome]


@dataclass(frozen=True)
class Receipt:
    """Images that are finished, with their vectors on disk.

    Attributes:
        outcomes: The outcome of each image by number.
        digests: Digests of the images that have vectors, in the order of the part's rows.
        part: The part with these vectors; None if no image has one.
    """

    outcomes: Outcomes
    digests: Sequence[bytes]
    part: Path | None


class Clock:
    """Adds up wall-clock seconds by activity.

    Attributes:
        seconds: Seconds by activity, in the order in which activities first started.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Add the time spent inside the context to `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent


class Share:
    """The images that one process encodes. Worker processes start decoding at once.

    Args:
        encoder: Encodes the images.
        folder: The cache's folder, below which parts are written.
        tasks: The images, in order.
        batch_size: Size of every batch, padded if necessary.
        workers: Number of processes that decode images.
        clock: Adds up the time spent.
        progress: Called after each batch, client by client.
        check: Called after each batch; raises RankFailedError if another rank failed.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
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
        self._progress = _ClientProgress(progress, encoder.samples, [task.client for task in tasks])
        self._batches = load_batches(
            [task.source for task in tasks],
            encoder.decode,
            encoder.blank,
            batch_size,
            min(workers, len(tasks)),
            pinned=encoder.device.type == "cuda",
        )

    def encode(self) -> Iterator[Receipt]:
        """Encode all images, and yield a receipt for each part once it is on disk.

        After an interrupt (Ctrl-C) or the failure of another rank, images encoded so far are kept.

        Raises:
            OSError: a part cannot be written.
            FedclipError: a worker process was killed, a batch does not fit into memory, or another
                rank failed.
        """
        with memory_for(self._batch_size), _Keeper(self._folder) as keeper:
            try:
                for batch, vectors in encode_batches(self._encoder, self._batches, self._clock):
                    keeper.add(batch, vectors, self._tasks, self._cut_off(batch))
                    self._progress.advance(batch)
                    self._check()
                    if keeper.full:
                        yield from self._kept(keeper)
            except (KeyboardInterrupt, RankFailedError):
                list(self._kept(keeper))
                raise
            yield from self._kept(keeper)
            yield from self._kept(keeper)

    def _cut_off(self, batch: Batch) -> list[bool]:
        if not isinstance(self._encoder, CutsOff):
            return [False] * len(batch.digests)
        cut: list[bool] = self._encoder.cut_off(batch.inputs).tolist()
        return cut[: len(batch.digests)]

    def _kept(self, keeper: "_Keeper") -> Iterator[Receipt]:
        with self._clock.timing(WRITING):
            receipt = keeper.keep()
        if receipt is not None:
            yield receipt


def encode_batches(
    encoder: SampleEncoder, batches: Iterator[Batch], clock: Clock
) -> Generator[tuple[Batch, npt.NDArray[np.float32]], None, None]:
    """Yield encoded batches; a device may compute one while the previous one is fetched."""
    computing: tuple[Batch, Launched] | None = None
    while True:
        with clock.timing(WAITING):
            batch = next(batches, None)
        done = computing
        with clock.timing(ENCODING):
            computing = (batch, encoder.launch(batch.inputs)) if batch else None
            finished = (done[0], done[1].numpy()) if done else None
        if finished:
            yield finished
        if batch is None:
            return


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Explain what to do if a batch does not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise FedclipError(
            f"--batch-size {batch_size}: needs more memory than is available; use a smaller one, "
            "with --force if the cache was started with this one"
        ) from None


class _Keeper:
    """Collects rows, and writes them as parts in the background, one at a time."""

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
        self,
        batch: Batch,
        vectors: npt.NDArray[np.float32],
        tasks: Sequence[Task],
        cut: Sequence[bool],
    ) -> None:
        """Collect a batch's rows; those past its last image are padding."""
        rows = len(batch.digests)
        numbers = [task.number for task in tasks[self._done : self._done + rows]]
        encoded = [True] * rows
        outcomes = map(Outcome, batch.digests, batch.problems, batch.unread, encoded, cut)
        self._outcomes.update(zip(numbers, outcomes, strict=True))
        self._vectors.append(vectors[:rows])
        self._done += rows

    def keep(self) -> Receipt | None:
        """Wait for the part being written, if any; start writing the collected rows as the next."""
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
    """Keep freed memory for the next allocation, whatever its size.

    glibc returns blocks over 32 MB, which an encoder's operations on a CPU need, to the system,
    which then zeroes every page of the next one: a seventh of the encoder's time. With this, the
    process keeps the most memory that it has ever needed. Other C libraries are not affected.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # allocate every block on the heap,
        mallopt(_TRIM_THRESHOLD, _MOST)  # and never shrink the heap


class _ClientProgress:
    """Reports progress of one client after the other, counted in `unit`."""

    def __init__(self, progress: Progress, unit: str, clients: Sequence[str]) -> None:
        self._progress = progress
        self._unit = unit
        self._clients = clients
        self._totals = Counter(clients)
        self._done: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._begin_next()

    def advance(self, batch: Batch) -> None:
        """Report that a batch is done."""
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
        self._progress(client, self._done[client], self._totals[client], self._unit, skipped)
