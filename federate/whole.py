"""Whole models, trained on the images themselves in an adapter's place.

They are what FedCLIP is measured against (Lu et al. 2023, table 1). A whole model is an
`nn.Module` called like an adapter, on a batch of pixels in place of features, so the loop
over rounds, the strategies, the evaluation and the records are those of adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..cache import FeatureCache


class Inputs(Protocol):
    """A domain's rows as a model takes them, gathered when they are asked for."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Gather (b, ...) of them for (b,) int64 row indices, on the device they are used on."""


@dataclass(frozen=True, eq=False)
class WholeModel:
    """A whole model to train, and the images to train it on.

    Attributes:
        facts: What identifies it, as JSON values; part of a run's identity.
        origin: What it can be made from again, as JSON values.
        make: Makes it anew; what is drawn at random is drawn from the seed given.
        inputs: The images behind a cache's rows.
        text: What it is called with beside pixels: (C, L) int64 tokens of the class prompts.
        zero_shot: Whether the cached features are its own, and so the zero-shot accuracy.
        keep: Whether the best round's parameters are written beside the result.
    """

    facts: Mapping[str, Any]
    origin: Mapping[str, Any]
    make: Callable[[int], nn.Module]
    inputs: Callable[[FeatureCache], Inputs]
    text: Tensor
    zero_shot: bool
    keep: bool = False


class WholeClip(nn.Module):
    """A whole CLIP: every parameter of both encoders, and the logit scale.

    Args:
        clip: A CLIP with `encode_image`, `encode_text` and `logit_scale`, as open_clip has it.
        mean: Of each channel, which is subtracted.
        std: Of each channel, which is divided by.
    """

    def __init__(self, clip: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.clip = clip
        self.normalise = Normalise(mean, std)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (B, 3, H, W) uint8 pixels and (C, L) tokens to raw (B, D) and (C, D) features."""
        image = self.clip.encode_image(self.normalise(pixels))  # type: ignore[operator]
        return image, self.clip.encode_text(tokens)  # type: ignore[operator]

    @property
    def scale(self) -> Tensor:
        """The model's own ``exp(logit_scale)``."""
        return self.clip.get_parameter("logit_scale").exp()


class Classifier(nn.Module):
    """A network with an output for each class, and no text side.

    Args:
        network: (B, 3, H, W) normalised pixels to (B, C) logits.
        mean: Of each channel, which is subtracted.
        std: Of each channel, which is divided by.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normalise(mean, std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Give (B, C) logits of (B, 3, H, W) uint8 pixels."""
        logits: Tensor = self.network(self.normalise(pixels))
        return logits


class Normalise(nn.Module):
    """Bytes to what a network was trained on: ``(pixels / 255 - mean) / std``."""

    # Not part of the state: nothing of it is trained or sent.
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) uint8 pixels to float32."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (pixels.float() / 255 - mean) / std
