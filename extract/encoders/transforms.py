"""Decodes the bytes of image files to the pixels that an encoder takes."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ...cache import FedclipError
from ..datasets.formats import FORMATS

Transform = Callable[[Image.Image], Tensor]

# Bytes to what an encoder takes, such as (3, H, W) float32; raises any error, such as Pillow's or
# UnusableError, if the bytes are not a usable sample.
Decoder = Callable[[bytes], Tensor]


class UnusableError(ValueError):
    """Why a sample cannot be encoded, in words that follow its name."""


class Preprocess(Protocol):
    """How an encoder's images must be preprocessed.

    Attributes:
        size: Side of the square, or height and width.
        resize_mode: ``shortest`` to resize the shorter side and crop the longer one, or another
            mode that only the encoder's own transform knows.
        interpolation: ``bicubic`` or ``bilinear``.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which pixels are then divided.
    """

    size: int | tuple[int, int]
    resize_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def make_decoder(preprocess: Preprocess, resizer: str, reference: Transform) -> Decoder:
    """Make a decoder that decodes with Pillow, then resizes, crops and normalizes.

    Args:
        preprocess: The encoder's requirements.
        resizer: ``pillow`` for the encoder's own transform, or ``torchvision``.
        reference: The encoder's own transform, from an image to its pixels.

    Raises:
        FedclipError: the resizer cannot resize as the encoder requires.
    """
    shorter = preprocess.size if isinstance(preprocess.size, int) else max(preprocess.size)
    resized = shorter if preprocess.resize_mode == "shortest" else None
    if resizer == "torchvision":
        return PillowDecoder(_torchvision_transform(preprocess, reference), resized)
    return PillowDecoder(reference, resized)


@dataclass(frozen=True, eq=False)
class PillowDecoder:
    """Decodes with Pillow, and turns the image into pixels with `transform`.

    Not a closure, since worker processes that are not forked receive a pickled copy.

    Attributes:
        transform: Function from an image to its pixels.
        shorter: Length to which it resizes the shorter side; None if it changes the aspect ratio.
    """

    transform: Transform
    shorter: int | None

    def __call__(self, content: bytes) -> Tensor:
        """Decode the bytes of an image file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                if self.shorter is not None:
                    _check_resized(image, self.shorter)
                return self.transform(image)


@dataclass(frozen=True, eq=False)
class ByteDecoder:
    """Decodes an image file to (3, H, W) uint8 pixels: what `decode` makes, not normalized.

    Attributes:
        decode: Decodes to normalized pixels.
        mean: What was subtracted from each channel of pixels in [0, 1].
        std: What each channel was divided by then.
    """

    decode: Decoder
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, content: bytes) -> Tensor:
        """Decode the bytes of an image file."""
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        return ((self.decode(content) * std + mean) * 255).round().to(torch.uint8)


def _check_resized(image: Image.Image, shorter: int) -> None:
    """Refuse a thin image that resizing would turn into a decompression bomb by Pillow's limit."""
    longer = shorter * max(image.size) // min(image.size)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and shorter * longer > 2 * limit:
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} pixels would be resized to {shorter} by {longer}"
        )


def _torchvision_transform(preprocess: Preprocess, reference: Transform) -> Transform:
    """Make a transform that resizes RGB images as tensors in half the time, others as `reference`.

    Its antialiased resizing rounds differently from Pillow's: by up to 2/255, and by more on hard
    edges of images that are much taller than wide, whose axes Pillow resizes in another order.

    Raises:
        FedclipError: the encoder does not resize the shorter side to that of a square.
    """
    size = preprocess.size if isinstance(preprocess.size, int) else preprocess.size[0]
    if preprocess.resize_mode != "shortest" or preprocess.size not in (size, (size, size)):
        raise FedclipError(
            "--resizer torchvision: cannot resize images as this encoder requires; use --resizer "
            "pillow"
        )
    mean, std = (torch.tensor(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    return _TensorTransform(
        reference=reference,
        size=size,
        interpolation="bilinear" if preprocess.interpolation == "bilinear" else "bicubic",
        mean=mean,
        std=std,
    )


@dataclass(frozen=True, eq=False)
class _TensorTransform:
    reference: Transform
    size: int
    interpolation: str
    mean: Tensor
    std: Tensor

    def __call__(self, image: Image.Image) -> Tensor:
        # Imported only when needed, since it takes seconds and most extractions do not use it.
        from torchvision.transforms.v2 import InterpolationMode, functional

        if image.mode != "RGB":
            return self.reference(image)
        pixels = functional.pil_to_tensor(image)
        pixels = functional.resize(
            pixels, [self.size], InterpolationMode(self.interpolation), antialias=True
        )
        scaled: Tensor = functional.center_crop(pixels, [self.size, self.size]).float() / 255
        return (scaled - self.mean) / self.std
