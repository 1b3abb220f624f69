"""One extraction by several processes, as `torchrun` or a cluster's launcher starts them.

The processes share a file system. The first rank decides what is missing, the batches
are dealt to all of them in turn, and the first assembles what everyone encoded. They
talk through the launcher's key-value store, in JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PATIENCE = timedelta(days=30)  # where a rank dies, the launcher ends the others

Item = TypeVar("Item")


@dataclass
class Ranks:
    """This process among its fellows; without any, by default.

    Attributes:
        rank: Its number; 0 leads.
        size: How many there are.
        local_rank: Its number on its host.
        local_size: How many there are on its host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _store: Store | None = field(default=None, init=False, repr=False)

    @classmethod
    def launched(cls) -> Self:
        """Read from the environment what a launcher left there, if one did."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        return cls(
            rank=int(os.environ.get("RANK", 0)),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        )

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, assembles and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Pick this rank's share of `items`, which are dealt in turn."""
        return items[self.rank :: self.size]

    def tell(self, subject: str, value: Any) -> None:
        """Tell the others something, a few megabytes at most."""
        if self.size > 1:
            self._connected().set(subject, json.dumps(value))

    def ask(self, subject: str) -> Any:
        """Wait until something is told."""
        return json.loads(self._connected().get(subject))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have the leader, who may keep the store, wait at the end until the others are done."""
        yield
        if self.leads:
            for rank in range(1, self.size):
                self.ask(f"done/{rank}")
        else:
            self.tell(f"done/{self.rank}", True)

    def _connected(self) -> Store:
        if self._store is None:
            from torch.distributed import rendezvous  # type: ignore[attr-defined]

            self._store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
            self._store.set_timeout(PATIENCE)
        return self._store
