"""Full models: whole networks trained on the images themselves.

They are what FedCLIP is measured against (Lu et al. 2023, table 1). A full model's network takes
a batch of pixels where an adapter takes features; everything else is the same for both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache import FeatureCache
from ..data.samples import Inputs
from .base import Model
from .losses import Loss, Scale
from .network import Network


@dataclass(frozen=True, eq=False, kw_only=True)
class FullModel(Model):
    """A whole network to train, and the images to train it on.

    Attributes:
        facts: What identifies it, as JSON values; part of a run's identity.
        origin: What it can be made from again, as JSON values.
        network: Makes it; what is drawn at random is drawn from the given seed.
        images: The images behind a cache's rows.
        tokens: (C, L) int64 tokens of the class prompts, which the network takes beside pixels.
        zero_shot: Whether the cached features are its own, and with them the zero-shot accuracy.
        kept: Whether the best round's parameters are written beside the result.
    """

    facts: Mapping[str, Any]
    origin: Mapping[str, Any]
    network: Callable[[int], Network]
    images: Callable[[FeatureCache], Inputs]
    tokens: Tensor
    zero_shot: bool
    kept: bool = False

    @property
    def title(self) -> str:
        """The backbone, and the weights it starts from where there is a choice."""
        return f"all of {describe_backbone(self.facts)}"

    def make(self, text: Tensor, seed: int) -> Network:
        """Make the network."""
        return self.network(seed)

    def inputs(self, cache: FeatureCache, features: Tensor) -> Inputs:
        """Train on the images."""
        return self.images(cache)

    def texts(self, text: Tensor) -> Tensor:
        """Use the prompts' tokens."""
        return self.tokens


def describe_backbone(facts: Mapping[str, Any]) -> str:
    """Name a full model's backbone, and the weights it starts from where there is a choice."""
    weights = f" ({facts['weights']} weights)" if "weights" in facts else ""
    return f"{facts['backbone']}{weights}"


class FullClip(Network):
    """A whole CLIP: every parameter of both encoders, and the logit scale.

    Args:
        clip: A CLIP with `encode_image`, `encode_text` and `logit_scale`, as open_clip has it.
        mean: Of each channel, which is subtracted.
        std: Of each channel, which is divided by.
    """

    def __init__(self, clip: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.clip = clip
        self.normalize = Normalize(mean, std)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, 3, H, W) uint8 pixels and (C, L) tokens to raw (B, D) and (C, D) features."""
        image = self.clip.encode_image(self.normalize(pixels))  # type: ignore[operator]
        return image, self.clip.encode_text(tokens)  # type: ignore[operator]

    def own_scale(self, logit_scale: Scale) -> Scale:
        """Use the network's own ``exp(logit_scale)``."""
        return self.clip.get_parameter("logit_scale").exp()


class Classifier(Network):
    """A network with an output for each class, and no text side.

    Args:
        network: (B, 3, H, W) normalized pixels to (B, C) logits.
        mean: Of each channel, which is subtracted.
        std: Of each channel, which is divided by.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(mean, std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, C) logits of (B, 3, H, W) uint8 pixels."""
        logits: Tensor = self.network(self.normalize(pixels))
        return logits

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Return (B, C) logits of pixels; texts are ignored."""
        return self(image)  # type: ignore[no-any-return]

    def loss(
        self, image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale, loss: Loss
    ) -> Tensor:
        """Return the cross-entropy, whatever the loss of the settings."""
        return functional.cross_entropy(self(image), labels)


class Normalize(nn.Module):
    """Bytes to what a network was trained on: ``(pixels / 255 - mean) / std``."""

    # Not part of the state: nothing of it is trained or sent.
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize (B, 3, H, W) uint8 pixels to float32."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (pixels.float() / 255 - mean) / std
