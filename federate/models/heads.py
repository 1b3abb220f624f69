"""A linear head in place of class texts, trained together with an adapter.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .adapters import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data.samples import Samples
    from .losses import Scale


@dataclass(frozen=True)
class WithHead(Adapter):
    """An adapter and the class vectors that its output is compared with, trained as one.

    The vectors start at the class means and take the place of class texts in the loss and in the
    prediction, so logits stay scaled cosines.

    Attributes:
        adapter: The adapter.
    """

    local_parts: ClassVar[tuple[str, ...]] = ("head",)

    adapter: Adapter

    @property
    def title(self) -> str:
        """The adapter's title, and the head."""
        return f"{self.adapter.title} and a linear head"

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        """Make the adapter's parameters, and (C, D) class vectors that start as `text`."""
        from torch import nn

        return {**self.adapter.layers(text), "head": nn.Parameter(text.clone())}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt (B, D) features and the class vectors; `text` is ignored."""
        return self.adapter.forward(layers, image, layers.head)

    def logits(self, layers: Any, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare (B, D) features with the class vectors: (B, C) logits."""
        return self.adapter.logits(layers, image, layers.head, logit_scale)

    def remember(self, layers: Any, samples: Samples) -> None:
        """Let the adapter keep what it wants of a client's training samples."""
        self.adapter.remember(layers, samples)
