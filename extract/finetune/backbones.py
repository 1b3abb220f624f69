"""Full networks to train: a CLIP, or torchvision's AlexNet.

Any error that torch or its downloader raises on weights is reported in one line as a fault of
the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ..encoders.checkpoint import Checkpoint, check_finite, read_checkpoint
from ..encoders.openclip import OpenClipEncoder, open_clip_decoder
from ..encoders.spec import RANDOM
from ..encoders.transforms import Decoder, PillowDecoder, Transform
from .images import ByteDecoder

IMAGENET = "imagenet"

# Length to which an image's shorter side is resized for AlexNet, before cropping 224 x 224.
_RESIZED = 256

# The layer of torchvision's AlexNet that outputs the classes.
_HEAD = "classifier.6"

_AS_IT_IS: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

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
    decode: ByteDecoder
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]


def clip_backbone(encoder: OpenClipEncoder) -> Backbone:
    """Make a backbone from a CLIP; all of its parameters are trained."""
    preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(encoder.model))
    _, height, width = encoder.blank.shape
    return Backbone(
        facts={"backbone": "clip", "parameters": encoder.facts["parameters"]},
        network=lambda seed: deepcopy(encoder.model).requires_grad_(True),
        decode=_ByteDecoder(
            open_clip_decoder(replace(preprocess, **_AS_IT_IS), encoder.name.resizer)
        ),
        size=(height, width),
        mean=encoder.facts["mean"],
        std=encoder.facts["std"],
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
    normalized = AlexNet_Weights.IMAGENET1K_V1.transforms()
    transform = AlexNet_Weights.IMAGENET1K_V1.transforms(**_AS_IT_IS)
    return Backbone(
        facts=facts,
        network=network,
        decode=_ByteDecoder(PillowDecoder(_OfRgb(transform), _RESIZED)),
        size=(224, 224),
        mean=normalized.mean,
        std=normalized.std,
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
    if not path.is_file():
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
class _ByteDecoder:
    """Converts the pixels of `decode`, which are in [0, 1], back to bytes."""

    decode: Decoder

    def __call__(self, content: bytes) -> Tensor:
        return (self.decode(content) * 255).round().to(torch.uint8)


@dataclass(frozen=True, eq=False)
class _OfRgb:
    """Converts images of any mode to RGB before the transform."""

    transform: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))
