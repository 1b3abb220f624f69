"""Whole networks to train: a CLIP, or torchvision's AlexNet.

Whatever torch or its downloader raises on weights is the fault of these, and becomes one
line.
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
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.key import file_sha256
from ..encoders.openclip import OpenClipEncoder, open_clip_decoder
from ..encoders.spec import RANDOM
from ..encoders.transforms import Decoder, PillowDecoder, Transform
from .images import ByteDecoder

IMAGENET = "imagenet"

# What AlexNet's shorter side is resized to, before 224 x 224 are cropped.
_RESIZED = 256

# Where torchvision's AlexNet puts out its classes.
_HEAD = "classifier.6"

_AS_IT_IS: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

Network = Callable[[int], nn.Module]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A whole network to train, and what it takes.

    Attributes:
        facts: What identifies it, as JSON values.
        network: Makes a new copy; its random initial values are drawn from the given seed.
        decode: An image file's bytes to (3, H, W) uint8 pixels.
        size: H and W.
        mean: Of each channel, to be subtracted from pixels in [0, 1].
        std: Of each channel, by which pixels are then divided.
    """

    facts: Mapping[str, Any]
    network: Network
    decode: ByteDecoder
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]


def clip_backbone(encoder: OpenClipEncoder) -> Backbone:
    """Make a backbone of a CLIP, all of whose parameters are trained."""
    preprocess = PreprocessCfg(**open_clip.get_model_preprocess_cfg(encoder.model))
    _, height, width = encoder.pixel_shape
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
    """Make a backbone of torchvision's AlexNet with one output per class.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
    (arXiv:1404.5997). The last layer is drawn at random unless the weights have one of that size.

    Args:
        weights: `imagenet`, torchvision's; `random`; or a file of a state_dict.
        classes: C.

    Raises:
        FedclipError: the weights are missing, cannot be loaded safely or are not an AlexNet's.
    """
    facts: dict[str, Any] = {"backbone": "alexnet", "weights": weights}
    state: dict[str, Tensor] = {}
    if weights == IMAGENET:
        state = _download()
    elif weights != RANDOM:
        state = _load(Path(weights))
        facts["weights"] = Path(weights).name
        facts["weights_sha256"] = file_sha256(Path(weights))
    network = _Alexnet(state, classes)
    try:
        network(0)
    except RuntimeError as error:
        raise FedclipError(f"{weights}: are no weights of AlexNet ({first_line(error)})") from None
    normalised = AlexNet_Weights.IMAGENET1K_V1.transforms()
    transform = AlexNet_Weights.IMAGENET1K_V1.transforms(**_AS_IT_IS)
    return Backbone(
        facts=facts,
        network=network,
        decode=_ByteDecoder(PillowDecoder(_OfRgb(transform), _RESIZED)),
        size=(224, 224),
        mean=normalised.mean,
        std=normalised.std,
    )


@dataclass(frozen=True, eq=False)
class _Alexnet:
    """Makes AlexNets of a state, which may be empty or lack the last layer."""

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
            f"AlexNet's ImageNet weights cannot be downloaded ({first_line(error)}); download "
            f"{url} and give the file with --alexnet-weights FILE, or start from "
            "--alexnet-weights random"
        ) from None
    return state


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FedclipError(
            f"--alexnet-weights {path}: file not found; give a file, {IMAGENET} or {RANDOM}"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise FedclipError(
            f"{path}: cannot be loaded ({first_line(error)}); give safetensors or a plain "
            "state_dict of torchvision's AlexNet"
        ) from None


@dataclass(frozen=True, eq=False)
class _ByteDecoder:
    """Turns the pixels of `decode`, which are bytes over 255, back into bytes."""

    decode: Decoder

    def __call__(self, content: bytes) -> Tensor:
        return (self.decode(content) * 255).round().to(torch.uint8)


@dataclass(frozen=True, eq=False)
class _OfRgb:
    """Converts an image of any mode before it is transformed."""

    transform: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))
