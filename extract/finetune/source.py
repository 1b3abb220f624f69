"""What training a full model needs from stage one: a network, images and texts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...cache import CacheFolder, FeatureCache, FedclipError
from ...cache.common.fields import suggest
from ...cache.common.progress import Progress, no_progress
from ..datasets.find import find_dataset, opened
from ..datasets.registry import KNOWN
from ..encoders.openclip import OpenClipEncoder
from ..encoders.prompts import prompt
from ..encoders.registry import family_of, load_encoder
from ..encoders.spec import DEFAULT_MODEL, EncoderName
from ..manifest import encoder_request
from ..request import DatasetRequest
from .backbones import Backbone, alexnet_backbone, clip_backbone
from .images import Images, find_images

CLIP = "clip"
ALEXNET = "alexnet"
BACKBONES = (CLIP, ALEXNET)


def check_backbone(backbone: str, alexnet_weights: str, model: str | None = None) -> None:
    """Check a backbone early, before hours of work depend on it.

    Args:
        backbone: One of `BACKBONES`.
        alexnet_weights: `imagenet`, `random` or a file.
        model: The encoder as the user names it; None for the default.

    Raises:
        FedclipError: the backbone is unknown, its weights cannot be loaded, or the encoder is no
            CLIP, which alone can be trained in full.
    """
    if backbone not in BACKBONES:
        raise FedclipError(f"--backbone {backbone}: unknown backbone{suggest(backbone, BACKBONES)}")
    if backbone == ALEXNET:
        alexnet_backbone(alexnet_weights, classes=2)
    elif model is not None and family_of(EncoderName(model, None)).prefix:
        raise FedclipError(
            f"--model {model}: is not a CLIP of open_clip, which alone can be trained in full; "
            f"choose one, such as --model {DEFAULT_MODEL}"
        )


@dataclass(frozen=True)
class Origin:
    """Where a full model and its images can be loaded from again.

    Attributes:
        backbone: One of `BACKBONES`.
        alexnet_weights: `imagenet`, `random` or a file.
        encoder: Arguments of `EncoderName`, with absolute paths.
        dataset: A known dataset's name, a folder or a repository on the hub.
        root: The folder or repository in which its images were found.
    """

    backbone: str
    alexnet_weights: str
    encoder: Mapping[str, Any]
    dataset: str
    root: str

    @classmethod
    def of(
        cls,
        backbone: str,
        alexnet_weights: str,
        encoder: EncoderName,
        dataset: str,
        cache: CacheFolder,
    ) -> Self:
        """Describe the backbone and the images that a cache was extracted from."""
        file = Path(alexnet_weights)
        root = str(cache.read_manifest()["root"])
        return cls(
            backbone=backbone,
            alexnet_weights=str(file.resolve()) if file.is_file() else alexnet_weights,
            encoder=encoder_request(encoder),
            dataset=dataset if dataset in KNOWN else root,
            root=root,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the origin as JSON values, which are arguments of this class."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Materials:
    """A network, and the images and texts to train it on.

    Attributes:
        backbone: The network and its preprocessing.
        images: The images from which the caches' rows were encoded, by client.
        tokens: (C, L) int64 tokens of the class prompts; L is 0 for a network without a text side.
    """

    backbone: Backbone
    images: Mapping[str, Images]
    tokens: Tensor


def load_materials(
    origin: Origin,
    caches: Sequence[FeatureCache],
    template: str,
    device: torch.device,
    progress: Progress = no_progress,
) -> Materials:
    """Load a full model, and the images and texts to train it on.

    Args:
        origin: Where to load them from.
        caches: The caches of the clients, whose rows are trained on.
        template: Template of the class prompts.
        device: Device to train on.
        progress: Called during downloads.

    Raises:
        FedclipError: the weights or the images cannot be loaded, or are not those of the caches.
    """
    name, class_names = EncoderName.from_json(origin.encoder), caches[0].class_names
    tokens = torch.zeros(len(class_names), 0, dtype=torch.int64)
    if origin.backbone == CLIP:
        encoder = load_encoder(name, torch.device("cpu"), progress)
        assert isinstance(encoder, OpenClipEncoder)
        backbone = clip_backbone(encoder)
        if encoder.facts["weights_sha256"] != caches[0].encoder.get("weights_sha256"):
            raise FedclipError(
                f"{encoder.name.model}: its weights differ from those with which the features were "
                "extracted; extract again"
            )
        tokens = encoder.tokenizer([prompt(template, each) for each in class_names])
    else:
        backbone = alexnet_backbone(origin.alexnet_weights, len(class_names))
    request = DatasetRequest(
        dataset=origin.dataset, data_dir=Path(origin.root), name=caches[0].dataset
    )
    dataset = opened(find_dataset(request, progress), progress)
    images = find_images(dataset, caches, backbone.decode, backbone.size, device)
    return Materials(backbone, images, tokens.to(device))
