"""One worker thread a core, each training one task at a time with single-threaded operations.

A task's numbers do not depend on the thread that works on it, so neither do they on the
number of threads.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch

from ..models.network import AdapterNetwork, Network
from .batched import Stack, stackable
from .tasks import LocalTask, Trained

# Steps after which a worker looks for a task that needs it more.
_SLICE = 4


def train(
    network: Network, tasks: Sequence[LocalTask], workers: int | None = None
) -> list[Trained]:
    """Do each task; `workers` at a time, by default as many as PyTorch would use threads."""
    workers = min(workers or torch.get_num_threads(), len(tasks))
    queue = _Queue(copy.deepcopy(stackable(network)).to("meta"), tasks, workers)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_work, queue) for _ in range(workers)]
        try:
            for worker in running:
                worker.result()
        finally:
            queue.close()
    # New threads inherit the number of threads that was set last.
    torch.set_num_threads(torch.get_num_threads())
    return [queue.trained[index] for index in range(len(tasks))]


@dataclass(eq=False)
class _Job:
    """A task in progress."""

    index: int
    stack: Stack
    steps: Iterator[None]
    left: int


class _Queue:
    """The tasks, the longest first. A worker drops one for another that has more steps left.

    That way they end together. No more tasks are started than this takes, as each holds memory.
    """

    def __init__(self, network: AdapterNetwork, tasks: Sequence[LocalTask], workers: int) -> None:
        self._network, self._tasks = network, tasks
        self._waiting = sorted(range(len(tasks)), key=lambda index: tasks[index].steps)
        self._begun: list[_Job] = []
        self._may_begin = 2 * workers - 1
        self._lock = threading.Lock()
        self.trained: dict[int, Trained] = {}

    def take(self) -> _Job | None:
        """Return a task to work on; None if none is left."""
        with self._lock:
            if not self._waiting or not self._may_begin:
                self._begun.sort(key=lambda job: job.left)
                return self._begun.pop() if self._begun else None
            self._may_begin -= 1
            index = self._waiting.pop()
        task = self._tasks[index]
        # A copy: a module must not be called from two threads with different parameters.
        stack = Stack(copy.deepcopy(self._network), [task])
        return _Job(index, stack, stack.run(), task.steps)

    def give_back(self, job: _Job) -> None:
        """Take back a task for another worker."""
        with self._lock:
            self._begun.append(job)

    def finish(self, job: _Job) -> None:
        """Take a finished task."""
        self.trained[job.index] = job.stack.trained()[0]
        with self._lock:
            self._may_begin += 1

    def close(self) -> None:
        """Return no more tasks."""
        with self._lock:
            self._waiting.clear()
            self._begun.clear()


def _work(queue: _Queue) -> None:
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            while (job := queue.take()) is not None:
                steps = _SLICE if job.left > _SLICE else None  # None is to the end.
                job.left -= sum(1 for _ in islice(job.steps, steps))
                if steps is None:
                    queue.finish(job)
                else:
                    queue.give_back(job)
    except BaseException:
        queue.close()
        raise
