"""The networks behind models: what training and evaluation call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...cache import FedclipError
from .losses import cosine_logits

if TYPE_CHECKING:
    from ..data.samples import Samples
    from .losses import Loss, Scale


# Modules that compute otherwise in training than in evaluation.
_VARYING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU)


class Network(nn.Module):
    """A network called as ``image, text = network(image, text)``, and what is made of that.

    Its state is its parameters, and whatever else of its state is averaged with them.
    """

    @property
    def stackable(self) -> bool:
        """Whether many of it can be trained as one: all of its state is trained float32."""
        return False

    def remember(self, samples: Samples) -> None:
        """Take what the network keeps of a client's training samples; nothing by default."""

    def own_scale(self, logit_scale: Scale) -> Scale:
        """Return the logit scale to use, given the encoder's."""
        return logit_scale

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare B inputs with C classes: (B, C) logits."""
        image, text = self(image, text)
        return cosine_logits(image, text, self.own_scale(logit_scale))

    def loss(
        self, image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale, loss: Loss
    ) -> Tensor:
        """Return the scalar loss of a minibatch of B inputs with (B,) int64 labels."""
        image, text = self(image, text)
        return loss(image, text, labels, self.own_scale(logit_scale))


class Functions(Protocol):
    """What an adapter does with its parameters; see `adapters.Adapter`."""

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt (B, D) image features and (C, D) class texts."""

    def logits(self, layers: Any, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Return (B, C) logits."""

    def remember(self, layers: Any, samples: Samples) -> None:
        """Keep something of a client's training samples."""


class AdapterNetwork(Network):
    """An adapter with its parameters.

    Args:
        adapter: Defines what to do with them.
        layers: The parameters by name; they become attributes.
    """

    def __init__(self, adapter: Functions, layers: Mapping[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.adapter = adapter
        for name, layer in layers.items():
            if hasattr(self, name) or not name.isidentifier():
                raise FedclipError(f"layers: {name!r} cannot be a layer's name; choose another")
            setattr(self, name, layer)

    @property
    def stackable(self) -> bool:
        """Whether its state is nothing but trained float32 parameters, each under one name."""
        trained = {
            name
            for name, each in self.named_parameters(remove_duplicate=True)
            if each.requires_grad and each.dtype == torch.float32
        }
        buffers = {name for name, _ in self.named_buffers()}
        varying = any(isinstance(each, _VARYING) for each in self.modules())
        return self.state_dict().keys() == trained and not buffers and not varying

    def remember(self, samples: Samples) -> None:
        """Let the adapter keep what it wants of a client's training samples."""
        self.adapter.remember(self, samples)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt (B, D) image features and (C, D) class texts."""
        return self.adapter.forward(self, image, text)

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare (B, D) image features with (C, D) class texts, neither adapted yet: (B, C)."""
        return self.adapter.logits(self, image, text, logit_scale)


def trainable_parameters(network: nn.Module) -> int:
    """Count the trained numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
