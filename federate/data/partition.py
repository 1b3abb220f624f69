"""Partitions: how the samples of a domain are split among several clients.

Importing this imports neither torch nor numpy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from ...cache.common.fields import check_options, option
from ..registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Rows: TypeAlias = "npt.NDArray[np.intp]"


@dataclass(frozen=True)
class Partition(ABC):
    """A way to split a domain among `clients` clients."""

    PANEL: ClassVar[str] = "Data"

    clients: int = option(
        least=1, help="Split every domain but the target among this many clients."
    )

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def split(self, labels: npt.NDArray[np.int32], random: np.random.Generator) -> Sequence[Rows]:
        """Assign every row to one client.

        Args:
            labels: (N,) class of each row.
            random: Draws what is random, the same for equal seeds and domains.

        Returns:
            For each client its row indices, in ascending order.
        """

    @property
    @abstractmethod
    def title(self) -> str:
        """The draw in a few words."""


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Label skew: each class is split in proportions drawn from a Dirichlet distribution.

    Each class's rows, shuffled, are cut in proportions drawn from Dirichlet(alpha)
    (Hsu et al. 2019, arXiv:1909.06335, drawn by class).
    """

    alpha: float = option(
        0.5, above=0, help="Concentration of the draw: small is uneven.", source="Hsu et al. 2019"
    )

    def split(self, labels: npt.NDArray[np.int32], random: np.random.Generator) -> Sequence[Rows]:
        """Split class by class."""
        import numpy as np

        parts: list[list[Rows]] = [[] for _ in range(self.clients)]
        for label in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(self.clients, self.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
            for part, own in zip(parts, np.split(rows, cuts), strict=True):
                part.append(own)
        return [np.sort(np.concatenate(part)) for part in parts]

    @property
    def title(self) -> str:
        """The distribution."""
        return f"Dirichlet({self.alpha:g})"


PARTITIONS: Registry[Partition] = Registry(
    "partition",
    Partition,  # type: ignore[type-abstract]
    __package__,
    {"dirichlet": "partition:Dirichlet"},
)
