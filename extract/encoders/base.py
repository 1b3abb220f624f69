"""The interface between the pipeline and a frozen encoder of any library.

An encoder implements `ImageEncoder`, `TextEncoder` or, like CLIP, both. To add a family of
encoders, add a file beside this one and a line in `registry.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache.common.device import repeatable_cudnn
from ...cache.key import EncoderFacts
from .spec import EncoderName
from .transforms import Decoder

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A frozen encoder on a device."""

    @property
    def name(self) -> EncoderName:
        """The encoder as the user names it."""

    @property
    def facts(self) -> EncoderFacts:
        """The facts that identify it; the cache's keys are hashes of them."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files it was loaded from; the encoder is unchanged if they are."""

    @property
    def logit_scale(self) -> float:
        """The factor on similarities of images and texts; 1 if the encoder has none."""

    @property
    def device(self) -> torch.device:
        """The device it runs on."""


@runtime_checkable
class ImageEncoder(Encoder, Protocol):
    """An encoder with an image side."""

    @property
    def decode(self) -> Decoder:
        """Function from an image file's bytes to (3, H, W) float32 pixels; can be pickled."""

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of what `decode` returns: channels, height, width."""

    def launch_images(self, pixels: Tensor) -> "Launched":
        """Start encoding (B, 3, H, W) float32 pixels to (B, D) float32 raw features."""

    def encode_images(self, pixels: Tensor) -> Vectors:
        """Encode (B, 3, H, W) float32 pixels to (B, D) float32 raw features."""


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder with a text side."""

    def encode_texts(self, prompts: Sequence[str]) -> Vectors:
        """Encode N prompts to (N, T) float32 raw features; T is D if they compare with images."""


@dataclass(frozen=True, eq=False)
class Launched:
    """Features being computed: (B, D) float32 on the host, valid once `arrived` is recorded."""

    features: Tensor
    arrived: torch.cuda.Event | None = None

    def numpy(self) -> Vectors:
        """Wait for the features and return them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        array: Vectors = self.features.numpy()
        return array


@dataclass(frozen=True, eq=False)
class Launcher:
    """Encodes batches of pixels on a device; a GPU copies and computes at the same time.

    Attributes:
        encode: The network: (B, 3, H, W) pixels on the device to (B, D) raw features.
        device: The device it runs on.
        dtype: Dtype of the pixels that it takes.
    """

    encode: Callable[[Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype = torch.float32

    def __call__(self, pixels: Tensor) -> Launched:
        """Start encoding (B, 3, H, W) float32 pixels to (B, D) float32 raw features.

        On a GPU this returns before the features are computed, and pinned pixels are copied while
        the previous batch is still being encoded.
        """
        with inference():
            features = self.encode(self._upload(pixels).to(self.dtype)).float()
            # Only CUDA has events that report when a background copy is complete.
            here = features.to("cpu", non_blocking=self.device.type == "cuda")
        if self.device.type != "cuda":
            return Launched(here)
        return Launched(here, torch.cuda.current_stream(self.device).record_event())

    @cached_property
    def _copies(self) -> torch.cuda.Stream | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _upload(self, pixels: Tensor) -> Tensor:
        if self._copies is None:
            return pixels.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            there = pixels.to(self.device, non_blocking=True)
        computing.wait_stream(self._copies)
        there.record_stream(computing)
        return there


@contextmanager
def inference() -> Iterator[None]:
    """Compute without gradients, and in full float32 precision on a GPU as on a CPU.

    TF32 and autotuned kernels would make a GPU's float32 differ from a CPU's.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), repeatable_cudnn():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
