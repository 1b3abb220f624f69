"""The image side of an encoder as a network from pixels, to be exported with a classifier."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache import FedclipError
from .base import SampleEncoder
from .towers import Towers
from .transforms import ByteDecoder

# Noise stands for images where none are given: its seed, and how many.
_SEED = 0
_SAMPLES = 8


@runtime_checkable
class ImageEncoder(SampleEncoder, Protocol):
    """An encoder whose image side is a network of its own."""

    def image_network(self) -> nn.Module:
        """Return the network: (B, 3, H, W) normalized pixels to (B, D) raw features."""

    @property
    def resizing(self) -> Mapping[str, Any]:
        """How images are resized, as JSON values.

        - ``resize``: ``shortest`` (the shorter side is resized, and the rest cropped), ``longest``
          (the longer side is, and the rest filled) or ``squash`` (both sides are).
        - ``resized``: Height and width that this leads to.
        - ``interpolation``: As Pillow names it.
        - ``fill``: Color of what is filled, R, G and B.
        """


class PixelEncoder(nn.Module):
    """Pixels to raw features, by one encoder or by several that are joined as `Towers` are.

    Attributes:
        encoders: The encoders that it was made of, by the names of the inputs: ``pixels``, or
            ``pixels_1`` and so on.
        dtype: What the networks compute in.
    """

    def __init__(self, encoders: Sequence[ImageEncoder]) -> None:
        super().__init__()
        names = [f"pixels_{number}" for number, _ in enumerate(encoders, start=1)]
        self.encoders = dict(zip(names if len(encoders) > 1 else ["pixels"], encoders, strict=True))
        self.dtype = torch.float32
        self.networks = nn.ModuleList(_copied(each.image_network()) for each in encoders)
        for name, each in self.encoders.items():
            for fact in ("mean", "std"):
                value = torch.tensor(each.facts[fact])[:, None, None]
                self.register_buffer(f"{name}_{fact}", value, persistent=False)

    def half(self) -> Self:
        """Let the networks compute in float16; pixels are normalized in float32 before."""
        self.dtype = torch.float16
        self.networks.half()
        return self

    def forward(self, *pixels: Tensor) -> Tensor:
        """Encode (B, 3, H, W) uint8 pixels, for each encoder those it takes, to (B, D) float32."""
        features: list[Tensor] = []
        for name, network, given in zip(self.encoders, self.networks, pixels, strict=True):
            mean, std = (self.get_buffer(f"{name}_{fact}") for fact in ("mean", "std"))
            normalized = (given.float() / 255 - mean) / std
            features.append(network(normalized.to(self.dtype)).float())
        if len(features) == 1:
            return features[0]
        return torch.cat([functional.normalize(each) for each in features], dim=1)

    def decode(self, content: bytes) -> tuple[Tensor, ...]:
        """Decode an image file to (3, H, W) uint8 pixels for each encoder."""
        return tuple(
            ByteDecoder(each.decode, each.facts["mean"], each.facts["std"])(content)
            for each in self.encoders.values()
        )

    @property
    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """How images become pixels, as JSON values by the name of the input."""
        return {
            name: {
                "input": "uint8 RGB pixels, (batch, 3, height, width)",
                "size": list(each.facts["image_size"]),
                **each.resizing,
                "mean": list(each.facts["mean"]),
                "std": list(each.facts["std"]),
                "normalized": "by the program",
            }
            for name, each in self.encoders.items()
        }

    def samples(self, images: Sequence[Path]) -> dict[str, Tensor]:
        """Return (N, 3, H, W) uint8 pixels of images, or of noise if there are none, by input.

        Raises:
            FedclipError: an image cannot be decoded.
        """
        if not images:
            random = torch.Generator().manual_seed(_SEED)
            return {
                name: torch.randint(
                    256, (_SAMPLES, *each.blank.shape), dtype=torch.uint8, generator=random
                )
                for name, each in self.encoders.items()
            }
        decoded = []
        for path in images:
            try:
                decoded.append(self.decode(path.read_bytes()))
            except Exception as error:  # broken files raise errors of many types
                raise FedclipError(f"{path}: cannot be decoded ({error}); leave it out") from None
        by_input = map(torch.stack, zip(*decoded, strict=True))
        return dict(zip(self.encoders, by_input, strict=True))


def pixel_encoder(encoder: SampleEncoder) -> PixelEncoder:
    """Take an encoder's image side, on the CPU in float32.

    Raises:
        FedclipError: it is not an encoder of images.
    """
    encoders = encoder.towers if isinstance(encoder, Towers) else (encoder,)
    found = [each for each in encoders if isinstance(each, ImageEncoder)]
    if len(found) < len(encoders):
        raise FedclipError(
            f"--with-encoder: {' + '.join(each.name.model for each in encoders)} encodes "
            f"{encoder.samples}, and only encoders of images can be exported; leave out "
            "--with-encoder to export the adapter alone, which takes this encoder's features"
        )
    return PixelEncoder(found)


def _copied(network: nn.Module) -> nn.Module:
    return deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(False)
