"""What a model trains on and is tested with: rows of a domain, gathered when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache import FeatureCache

# Rows that are worked on together: few enough to be in a cache still for the next operation.
ROWS_AT_ONCE = 1024
IMAGES_AT_ONCE = 256

Rows = npt.NDArray[np.intp]


class Inputs(Protocol):
    """A domain's rows as a model takes them, gathered when they are asked for."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Gather (b, ...) of them for (b,) int64 row indices, on the device they are used on."""


@dataclass(frozen=True, eq=False)
class Domain:
    """A domain's rows on the device they are used on, shared by all who hold some of them.

    Attributes:
        cache: Where they come from.
        features: (N, D) float32.
        labels: (N,) int64.
        order: (N,) the rows in the order of their ids.
        images: The images behind the rows, for a whole model; None where features are
            trained on.
    """

    cache: FeatureCache
    features: Tensor
    labels: Tensor
    order: Rows
    images: Inputs | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.cache.client

    def view(self, rows: Rows) -> "Samples":
        """See some of its rows, in the order given."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return Samples(self, index.to(self.labels.device))


@dataclass(frozen=True, eq=False)
class Samples:
    """Some rows of a domain: a view that is gathered when it is asked for.

    Attributes:
        domain: Whose rows.
        rows: (n,) int64, on the domain's device.
    """

    domain: Domain
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather some of them: (b, D) float32 features and (b,) int64 labels.

        For a whole model it is (b, 3, H, W) uint8 pixels in place of features.
        """
        rows, images = self.rows[which], self.domain.images
        if images is None:
            return self.cached(which)
        return images[rows], self.domain.labels[rows]

    def cached(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather features, whatever is trained on: (b, D) float32 and (b,) int64 labels."""
        rows = self.rows[which]
        return self.domain.features[rows], self.domain.labels[rows]

    @property
    def at_once(self) -> int:
        """Rows that are best gathered together."""
        return ROWS_AT_ONCE if self.domain.images is None else IMAGES_AT_ONCE

    @property
    def features(self) -> Tensor:
        """All of them, (n, D) float32, copied."""
        return self.domain.features[self.rows]

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, copied."""
        return self.domain.labels[self.rows]


@dataclass(frozen=True, eq=False)
class JoinedSamples(Samples):
    """Samples of several domains' features as one, copied only when they are asked for.

    Attributes:
        domain: That of the first.
        rows: (n,) int64, rows of the parts one below the other.
        parts: Where they are.
    """

    parts: tuple[Samples, ...]

    @classmethod
    def of(cls, parts: Sequence[Samples]) -> Self:
        """Join all samples of one or more."""
        rows = torch.arange(sum(map(len, parts)), device=parts[0].rows.device)
        return cls(parts[0].domain, rows, tuple(parts))

    def cached(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather features, (b, D) float32 and (b,) int64 labels, from each of the parts."""
        rows, some = self.rows[which], self.domain.features
        features = some.new_empty(len(rows), some.shape[1])
        labels = torch.empty_like(rows)
        firsts = accumulate(map(len, self.parts[:-1]), initial=0)
        for first, part in zip(firsts, self.parts, strict=True):
            mine = (rows >= first) & (rows < first + len(part))
            features[mine], labels[mine] = part.cached(rows[mine] - first)
        return features, labels

    @property
    def features(self) -> Tensor:
        """All of them, (n, D) float32, copied."""
        return self.cached(slice(None))[0]

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, copied."""
        return torch.cat([part.labels for part in self.parts])[self.rows]
