"""The image side of an encoder as a network of its own, to be exported with a classifier."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...cache import FedclipError
from ..encoders.base import SampleEncoder
from ..encoders.openclip import OpenClipEncoder
from .backbones import clip_backbone
from .images import ByteDecoder

# Noise stands for images where none are given: its seed, and how many.
_SEED = 0
_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class ImageSide:
    """An image encoder without the rest of its model, on the CPU in float32.

    Attributes:
        network: (B, 3, H, W) normalized pixels to (B, D) raw features.
        decode: Function from an image file's bytes to (3, H, W) uint8 pixels.
        size: H and W.
        mean: Of each channel, which is subtracted from pixels in [0, 1].
        std: Of each channel, which is divided by then.
        preprocessing: How images become pixels, as JSON values.
    """

    network: nn.Module
    decode: ByteDecoder
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    preprocessing: Mapping[str, Any]

    def samples(self, images: Sequence[Path]) -> Tensor:
        """Return (N, 3, H, W) uint8 pixels of images, or of noise if there are none.

        Raises:
            FedclipError: an image cannot be decoded.
        """
        if not images:
            random = torch.Generator().manual_seed(_SEED)
            shape = (_SAMPLES, 3, *self.size)
            return torch.randint(256, shape, dtype=torch.uint8, generator=random)
        pixels = []
        for path in images:
            try:
                pixels.append(self.decode(path.read_bytes()))
            except Exception as error:  # broken files raise errors of many types
                raise FedclipError(f"{path}: cannot be decoded ({error}); leave it out") from None
        return torch.stack(pixels)


def image_side(encoder: SampleEncoder) -> ImageSide:
    """Take an encoder's image side.

    Raises:
        FedclipError: the encoder is not of open_clip.
    """
    if not isinstance(encoder, OpenClipEncoder):
        raise FedclipError(
            f"{encoder.name.model}: only encoders of open_clip can be exported; leave out "
            "--with-encoder"
        )
    backbone = clip_backbone(encoder)
    model = deepcopy(encoder.model).to("cpu", torch.float32).eval().requires_grad_(False)
    height, width = backbone.size
    facts = encoder.facts
    return ImageSide(
        network=_image_network(model, torch.zeros(1, 3, height, width)),
        decode=backbone.decode,
        size=backbone.size,
        mean=backbone.mean,
        std=backbone.std,
        preprocessing={
            "input": "uint8 RGB pixels, (batch, 3, height, width)",
            "size": [height, width],
            "resize": facts["resize"],
            "interpolation": facts.get("interpolation", "bicubic"),
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "normalized": "by the program",
        },
    )


@torch.inference_mode()
def _image_network(model: nn.Module, pixels: Tensor) -> nn.Module:
    """Leave out the text side where the image side is a module of its own."""
    whole = _ImageMethod(model)
    visual = getattr(model, "visual", None)
    if isinstance(visual, nn.Module):
        own = visual(pixels)
        if isinstance(own, Tensor) and torch.equal(own, whole(pixels)):
            return visual
    return whole


class _ImageMethod(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]
        return features
