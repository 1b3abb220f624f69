"""What a model trains on and is tested with: rows of a domain, gathered when asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache import FeatureCache
from ...cache.common.fields import listed
from ...cache.common.text import counted

Rows = npt.NDArray[np.intp]


class Inputs(Protocol):
    """A domain's rows as a network takes them, gathered when asked for."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Gather (b, ...) rows for (b,) int64 row indices, on the device where they are used."""


@dataclass(frozen=True, eq=False, repr=False)
class Domain:
    """A domain's rows on the device where they are used, shared by all who hold some of them.

    Attributes:
        cache: Where they come from.
        features: (N, D) float32.
        labels: (N,) int64.
        order: (N,) the rows in the order of their ids.
        inputs: What the trained model takes for each row: the features, or images.
    """

    cache: FeatureCache
    features: Tensor
    labels: Tensor
    order: Rows
    inputs: Inputs

    def __repr__(self) -> str:
        return f"<domain {self.name}: {counted(len(self.labels), 'row')}>"

    @property
    def name(self) -> str:
        """What it is called."""
        return self.cache.client

    def view(self, rows: Rows) -> "Samples":
        """See some of its rows, in the order given."""
        index = torch.from_numpy(np.ascontiguousarray(rows))
        return Samples(self, index.to(self.labels.device))


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Some rows of a domain: a view that is gathered when it is asked for.

    Attributes:
        domain: Whose rows.
        rows: (n,) int64, on the domain's device.
    """

    domain: Domain
    rows: Tensor

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'row')} of {self.domain.name}>"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather the model's (b, ...) inputs and the (b,) int64 labels of some of them."""
        rows = self.rows[which]
        return self.domain.inputs[rows], self.domain.labels[rows]

    def cached(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather features, whatever is trained on: (b, D) float32 and (b,) int64 labels."""
        rows = self.rows[which]
        return self.domain.features[rows], self.domain.labels[rows]

    @property
    def features(self) -> Tensor:
        """All of them, (n, D) float32, copied."""
        return self.domain.features[self.rows]

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, copied."""
        return self.domain.labels[self.rows]


@dataclass(frozen=True, eq=False, repr=False)
class JoinedSamples(Samples):
    """Samples of several domains' features as one, copied only when they are asked for.

    Attributes:
        domain: That of the first.
        rows: (n,) int64, rows of the parts one below the other.
        parts: Where they are.
    """

    parts: tuple[Samples, ...]

    def __repr__(self) -> str:
        names = listed([part.domain.name for part in self.parts], "and")
        return f"<{counted(len(self), 'row')} of {names}>"

    @classmethod
    def of(cls, parts: Sequence[Samples]) -> Self:
        """Join all samples of one or more."""
        rows = torch.arange(sum(map(len, parts)), device=parts[0].rows.device)
        return cls(parts[0].domain, rows, tuple(parts))

    def __getitem__(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather inputs and labels from the parts."""
        return self._gathered(which, Samples.__getitem__)

    def cached(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Gather features and labels from the parts."""
        return self._gathered(which, Samples.cached)

    def _gathered(
        self,
        which: Tensor | slice,
        gather: Callable[[Samples, Tensor | slice], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        rows = self.rows[which]
        inputs, labels = gather(self.parts[0], slice(0))
        inputs = inputs.new_empty(len(rows), *inputs.shape[1:])
        labels = torch.empty_like(rows)
        firsts = accumulate(map(len, self.parts[:-1]), initial=0)
        for first, part in zip(firsts, self.parts, strict=True):
            mine = (rows >= first) & (rows < first + len(part))
            inputs[mine], labels[mine] = gather(part, rows[mine] - first)
        return inputs, labels

    @property
    def features(self) -> Tensor:
        """All of them, (n, D) float32, copied."""
        return self.cached(slice(None))[0]

    @property
    def labels(self) -> Tensor:
        """Their labels, (n,) int64, copied."""
        return torch.cat([part.labels for part in self.parts])[self.rows]
