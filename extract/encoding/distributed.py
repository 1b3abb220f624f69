"""One extraction by several processes, as `torchrun` or a cluster's launcher starts them.

The processes share a file system. The first rank decides what is missing, the batches
are dealt to all of them in turn, and the first assembles what everyone encoded. They
talk through the launcher's key-value store, in JSON. A rank that fails says why there,
which ends the others.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ...cache import FedclipError
from ...cache.common.errors import first_line

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

# How long the first rank to be there waits for the last.
ARRIVAL = timedelta(minutes=10)
# How long a first rank that fails, and may keep the store, waits until the others know.
FAREWELL = timedelta(minutes=1)
# Seconds between two looks at the store: waiting in it cannot be interrupted.
PAUSE = 0.2

_FAILED = "failed"

Item = TypeVar("Item")


@dataclass
class Ranks:
    """This process among its fellows; without any, by default.

    Attributes:
        rank: Its number; 0 leads.
        size: How many there are.
        local_rank: Its number on its host.
        local_size: How many there are on its host.
        counted: Whether the launcher said these two; otherwise they are found out `together`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    counted: bool = True
    _store: Store | None = field(default=None, init=False, repr=False)

    @classmethod
    def launched(cls) -> Self:
        """Read from the environment what a launcher left there, if one did.

        Raises:
            FedclipError: it left something else than numbers, or no number for this process.
        """
        size = _number("WORLD_SIZE", default=1, least=1)
        rank = _number("RANK", default=None if size > 1 else 0)
        if rank >= size:
            raise FedclipError(f"RANK={rank}: ranks are numbered from 0, and WORLD_SIZE is {size}")
        return cls(
            rank=rank,
            size=size,
            local_rank=_number("LOCAL_RANK", default=0),
            local_size=_number("LOCAL_WORLD_SIZE", default=size, least=1),
            counted=all(map(os.environ.get, ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))),
        )

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, assembles and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Pick this rank's share of `items`, which are dealt in turn."""
        return items[self.rank :: self.size]

    def tell(self, subject: str, value: Any) -> None:
        """Tell the others something, a few megabytes at most.

        Raises:
            FedclipError: one of them failed, or the store is gone.
        """
        if self.size > 1:
            with self._talking() as store:
                _hear_failure(store)
                store.set(subject, json.dumps(value))

    def ask(self, subject: str) -> Any:
        """Wait until something is told.

        Raises:
            FedclipError: another rank failed, or the store is gone.
        """
        with self._talking() as store:
            while True:
                _hear_failure(store)
                if store.check([subject]):
                    return json.loads(store.get(subject))
                time.sleep(PAUSE)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Meet the others, and at the end have the leader wait until they are done.

        Raises:
            FedclipError: they do not come, or one of them failed.
        """
        if self.size == 1:
            yield
            return
        self._store = self._connected()
        try:
            if not self.counted:
                self._count()
            yield
            if self.leads:  # and may keep the store
                for rank in range(1, self.size):
                    self.ask(_done(rank))
            else:
                self.tell(_done(self.rank), True)
        except BaseException as error:
            self._tell_failure(error)
            raise

    def _connected(self) -> Store:
        # What goes wrong is said in one line; torch would print its stack besides.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        from torch.distributed import rendezvous  # type: ignore[attr-defined]

        try:
            store: Store = next(rendezvous("env://", timeout=ARRIVAL))[0]
        except (RuntimeError, ValueError, OSError) as error:
            raise FedclipError(
                f"rank {self.rank} cannot meet the others ({first_line(error)}); start all "
                f"{self.size} ranks within {ARRIVAL.total_seconds() / 60:g} minutes, with rank 0's "
                "host as MASTER_ADDR and a free port of it as MASTER_PORT"
            ) from None
        return store

    def _count(self) -> None:
        """Find out which ranks are on this host."""
        self.tell(f"host/{self.rank}", socket.gethostname())
        hosts = [self.ask(f"host/{rank}") for rank in range(self.size)]
        here = [rank for rank, host in enumerate(hosts) if host == hosts[self.rank]]
        self.local_rank, self.local_size = here.index(self.rank), len(here)

    def _tell_failure(self, error: BaseException) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        assert self._store is not None
        with suppress(RuntimeError):  # of a store that is gone, with its keeper
            self._store.compare_set(_FAILED, "", json.dumps([self.rank, reason]))  # the first stays
            if not self.leads:
                self._store.set(_done(self.rank), json.dumps(False))
                return
            others = [_done(rank) for rank in range(1, self.size)]
            end = time.monotonic() + FAREWELL.total_seconds()
            while not self._store.check(others) and time.monotonic() < end:
                time.sleep(PAUSE)

    @contextmanager
    def _talking(self) -> Iterator[Store]:
        assert self._store is not None
        try:
            yield self._store
        except RuntimeError as error:
            raise FedclipError(
                f"rank {self.rank} lost the others ({first_line(error)}): rank 0 was probably "
                "killed; see what it said last, and run again"
            ) from None


def _done(rank: int) -> str:
    return f"done/{rank}"


def _hear_failure(store: Store) -> None:
    if store.check([_FAILED]):
        rank, reason = json.loads(store.get(_FAILED))
        raise FedclipError(f"rank {rank} failed: {reason}")


def _number(variable: str, default: int | None, least: int = 0) -> int:
    """Read a number that a launcher sets; a variable that is empty is not set."""
    text = os.environ.get(variable, "")
    if not text and default is not None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < least:
        raise FedclipError(
            f"{variable}={text}: a whole number from {least} on belongs there; let the launcher "
            "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or unset WORLD_SIZE"
        )
    return number
