"""Whole models, trained on the images themselves in an adapter's place.

They are what FedCLIP is measured against (Lu et al. 2023, table 1). A whole model is an
`Adapter` called, on a batch of pixels in place of features, so the loop
over rounds, the strategies, the evaluation and the records are those of adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache import FeatureCache
from ..data.samples import Inputs
from ..settings import LossName
from .adapters import Adapter
from .losses import LOSSES, Scale


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
    make: Callable[[int], Adapter]
    inputs: Callable[[FeatureCache], Inputs]
    text: Tensor
    zero_shot: bool
    keep: bool = False


class WholeClip(Adapter):
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

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Compare pixels with tokens, (B, C), by the model's own logit scale."""
        return super().logits(image, text, self.scale)

    @property
    def scale(self) -> Tensor:
        """The model's own ``exp(logit_scale)``."""
        return self.clip.get_parameter("logit_scale").exp()


class Classifier(Adapter):
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

    def logits(self, image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
        """Give (B, C) logits of pixels; there is no text side."""
        return self(image)  # type: ignore[no-any-return]


def training_loss(
    model: nn.Module,
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    logit_scale: float,
    loss: LossName,
) -> Tensor:
    """Run a model, and give its loss on a minibatch; of a classifier always cross-entropy.

    Args:
        model: An adapter or a whole model.
        image: (B, D) features, or (B, 3, H, W) pixels for a whole model.
        text: (C, D) class texts, or (C, L) tokens for a whole model.
        labels: (B,) int64.
        logit_scale: The encoder's; a whole CLIP has its own.
        loss: A key of `LOSSES`.
    """
    if isinstance(model, Classifier):
        return functional.cross_entropy(model(image), labels)
    image, text = model(image, text)
    scale = model.scale if isinstance(model, WholeClip) else logit_scale
    return LOSSES[loss](image, text, labels, scale)


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
