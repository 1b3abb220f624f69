"""Full networks to train: a CLIP, or torchvision's AlexNet.

Any error that torch or its downloader raises on weights is reported in one line as a fault of
the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.files import regular
from ..encoders.base import check_finite
from ..encoders.checkpoint import Checkpoint, read_checkpoint
from ..encoders.openclip import OpenClipEncoder
from ..encoders.spec import RANDOM
from ..encoders.transforms import ByteDecoder, PillowDecoder, Transform
from .images import DecodeBytes

IMAGENET = "imagenet"

# Length to which an image's shorter side is resized for AlexNet, before cropping 224 x 224.
_RESIZED = 256

# The layer of torchvision's AlexNet that outputs the classes.
_HEAD = "classifier.6"

Network = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A full network to train, and how its images are preprocessed.

    Attributes:
        facts: The facts that identify it, as JSON values.
        network: Makes a new copy; its random initial values are drawn from the given seed.
        decode: Function from an image file's bytes to (3, H, W) uint8 pixels.
        size: H and W.
        mean: Mean of each channel, to be subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which pixels are then divided.
    """

    facts: Mapping[str, Any]
    network: Network
    decode: DecodeBytes
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]


def clip_backbone(encoder: OpenClipEncoder) -> Backbone:
    """Make a backbone from a CLIP; all of its parameters are trained."""
    mean, std = encoder.facts["mean"], encoder.facts["std"]
    _, height, width = encoder.blank.shape
    return Backbone(
        facts={"backbone": "clip", "parameters": encoder.facts["parameters"]},
        network=lambda seed: deepcopy(encoder.model).requires_grad_(True),
        decode=ByteDecoder(encoder.decode, mean, std),
        size=(height, width),
        mean=mean,
        std=std,
    )


def alexnet_backbone(weights: str, classes: int) -> Backbone:
    """Make a backbone from torchvision's AlexNet with one output per class.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
    (arXiv:1404.5997). The last layer is random unless the weights contain one of that size.

    Args:
        weights: `imagenet` for torchvision's, `random`, or a file with a state_dict.
        classes: C.

    Raises:
        FedclipError: the weights are missing, cannot be loaded safely or are not of AlexNet.
    """
    facts: dict[str, Any] = {"backbone": "alexnet", "weights": weights}
    state: dict[str, Tensor] = {}
    if weights == IMAGENET:
        state = _download()
    elif weights != RANDOM:
        checkpoint = _load(Path(weights))
        state = checkpoint.tensors
        facts["weights"] = checkpoint.path.name
        facts["weights_sha256"] = checkpoint.sha256
    network = _Alexnet(state, classes)
    try:
        network(0)
    except RuntimeError as error:
        raise FedclipError(
            f"--alexnet-weights {weights}: not weights of AlexNet ({first_line(error)}); choose "
            "other weights"
        ) from None
    transform = AlexNet_Weights.IMAGENET1K_V1.transforms()
    mean, std = transform.mean, transform.std
    return Backbone(
        facts=facts,
        network=network,
        decode=ByteDecoder(PillowDecoder(_OfRgb(transform), _RESIZED), mean, std),
        size=(224, 224),
        mean=mean,
        std=std,
    )


@dataclass(frozen=True, eq=False)
class _Alexnet:
    """Makes AlexNets from a state_dict, which may be empty or lack the last layer."""

    state: Mapping[str, Tensor]
    classes: int

    def __call__(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = alexnet(num_classes=self.classes)
        state = dict(self.state)
        head = state.get(f"{_HEAD}.weight")
        if head is None or len(head) != self.classes:
            for name in ("weight", "bias"):
                state[f"{_HEAD}.{name}"] = network.get_parameter(f"{_HEAD}.{name}")
        if self.state:
            network.load_state_dict(state)
        return network


def _download() -> dict[str, Tensor]:
    url = AlexNet_Weights.IMAGENET1K_V1.url
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:
        raise FedclipError(
            f"--alexnet-weights {IMAGENET}: cannot be downloaded ({first_line(error)}); download "
            f"{url} and pass --alexnet-weights FILE, or use --alexnet-weights {RANDOM}"
        ) from None
    return state


def _load(path: Path) -> Checkpoint:
    if not regular(path).is_file():
        raise FedclipError(
            f"--alexnet-weights {path}: file not found; pass a file, {IMAGENET} or {RANDOM}"
        )
    try:
        checkpoint = read_checkpoint(path)
        check_finite(checkpoint.tensors)
    except Exception as error:
        reason = f"it {error}" if isinstance(error, FedclipError) else first_line(error)
        raise FedclipError(
            f"{path}: cannot be loaded ({reason}); pass safetensors or a plain state_dict of "
            "torchvision's AlexNet"
        ) from None
    return checkpoint


@dataclass(frozen=True, eq=False)
class _OfRgb:
    """Converts images of any mode to RGB before the transform."""

    transform: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))
