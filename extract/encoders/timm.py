"""Encoders of timm: image models without a text side, such as ViT, DINOv2 and ConvNeXt.

An image's vector is the pooled feature before the classification head, which timm returns from
``forward_head(forward_features(x), pre_logits=True)``. Images are preprocessed as the model's own
config requires, with timm's transform for evaluation.

Any error that timm, torch or the hub's client raises on weights is reported in one line.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_state_dict
from torch import Tensor, nn

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.fields import suggest
from ...cache.common.progress import Progress, no_progress
from ...cache.key import EncoderFacts, file_sha256
from ..hub import MODEL, Repository, download, look_up, remember
from .base import DTYPES, Launched, Launcher, compiled, facts_of, quiet
from .spec import RANDOM, TIMM, EncoderName, is_file
from .transforms import Decoder, PillowDecoder, Transform

_SAFE = "model.safetensors"
_PICKLED = "pytorch_model.bin"


@dataclass(frozen=True, eq=False)
class TimmEncoder:
    """A frozen image model on a device, a `SampleEncoder`.

    Attributes:
        name: The encoder as the user names it.
        facts: The facts that identify it.
        sources: The files on this machine that it was loaded from.
        model: The network without its classification head, in evaluation mode.
        decode: Function from an image file's bytes to (3, H, W) float32 pixels.
        device: The device it runs on.
        logit_scale: 1, as it has none.
        samples: Images.
    """

    name: EncoderName
    facts: EncoderFacts
    sources: tuple[Path, ...]
    model: nn.Module
    decode: Decoder
    device: torch.device
    logit_scale: float = 1.0
    samples: Literal["images"] = "images"

    @property
    def blank(self) -> Tensor:
        """Black pixels, (3, H, W) float32."""
        return torch.zeros(3, *self.facts["image_size"])

    def launch(self, inputs: Tensor) -> Launched:
        """Start encoding (B, 3, H, W) float32 pixels to (B, D) float32 raw features."""
        return self._launcher(inputs)

    @cached_property
    def _launcher(self) -> Launcher:
        dtype, network = DTYPES[self.name.precision], self.image_network()

        def pooled(pixels: Tensor) -> Tensor:
            features: Tensor = network(pixels.to(dtype))
            return features

        return Launcher(compiled(pooled) if self.name.compiled else pooled, self.device)

    def image_network(self) -> nn.Module:
        """Return the network to the pooled features before the classification head."""
        return _Pooled(self.model)

    @property
    def resizing(self) -> Mapping[str, Any]:
        """How images are resized, as `ImageEncoder` has it."""
        facts = self.facts
        modes = {"squash": "squash", "border": "longest"}
        return {
            "resize": modes.get(facts["crop_mode"], "shortest"),
            "resized": [math.floor(side / facts["crop_pct"]) for side in facts["image_size"]],
            "interpolation": facts["interpolation"],
            "fill": [round(255 * value) for value in facts["mean"]],
        }


class _Pooled(nn.Module):
    """Encodes images to the features before the classification head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        model: Any = self.model
        features: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return features


@dataclass(frozen=True)
class _InColour:
    """Converts an image to RGB before timm's transform, which expects that.

    Attributes:
        transform: Function from an RGB image to its pixels.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))


def fetch_encoder(name: EncoderName, progress: Progress = no_progress) -> None:
    """Download a model's weights if they are on the hub and not on this machine.

    Raises:
        FedclipError: the weights are missing and cannot be downloaded.
    """
    _weights(name, progress)


def load_encoder(name: EncoderName, device: torch.device) -> TimmEncoder:
    """Build a model, load its weights and collect the facts that identify it.

    Raises:
        FedclipError: the model is unknown, or its weights are missing, do not fit or cannot be
            loaded safely.
    """
    weights = _weights(name)
    with quiet(), torch.random.fork_rng(devices=[]):
        model = _build(name, weights)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    facts = facts_of(
        name,
        "timm",
        model,
        file_sha256(weights) if weights else None,
        shared={"architecture": _architecture(name)},
        image={
            "image_size": list(config["input_size"][1:]),
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "interpolation": config["interpolation"],
            "crop_pct": config["crop_pct"],
            "crop_mode": config["crop_mode"],
            "decoder": "pillow",
            "resizer": name.resizer,
        },
        place=weights,
    )
    return TimmEncoder(
        name=name,
        facts=facts,
        sources=(weights.absolute(),) if weights else (),
        model=model.to(DTYPES[name.precision]).eval().requires_grad_(False).to(device),
        decode=_decoder(name, config),
        device=device,
    )


def _decoder(name: EncoderName, config: Mapping[str, Any]) -> Decoder:
    if name.resizer != "pillow":
        raise FedclipError(
            f"--resizer {name.resizer}: {name.model} is preprocessed by timm's own transform; use "
            "--resizer pillow"
        )
    transform: Transform = create_transform(**config, is_training=False)
    keeps_aspect = config["crop_mode"] != "squash"
    side = math.floor(max(config["input_size"][1:]) / config["crop_pct"])
    return PillowDecoder(_InColour(transform), side if keeps_aspect else None)


def _model_name(name: EncoderName) -> str:
    return name.model.removeprefix(TIMM)


def _architecture(name: EncoderName) -> str:
    return _model_name(name).partition(".")[0]


def _config(name: EncoderName) -> Any:
    """Return timm's config of pretrained weights.

    Raises:
        FedclipError: the model or its tag is unknown.
    """
    model, architecture = _model_name(name), _architecture(name)
    if not timm.is_model(architecture):
        known = [f"{TIMM}{each}" for each in timm.list_models()]
        raise FedclipError(
            f"unknown model {name.model!r}{suggest(name.model, known)} "
            "(python -c 'import timm; print(timm.list_models())' lists all)"
        )
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError:
        tags = [f"{TIMM}{each}" for each in timm.list_pretrained(f"{architecture}*")]
        raise FedclipError(f"unknown weights {name.model!r}{suggest(name.model, tags)}") from None


def _weights(name: EncoderName, progress: Progress = no_progress) -> Path | None:
    """Find the weights on this machine, and download them first if they are on the hub.

    Raises:
        FedclipError: the model is unknown, or has no weights that can be loaded safely.
    """
    config = _config(name)
    if name.pretrained == RANDOM:
        return None
    if name.pretrained is not None:
        if not is_file(name.pretrained):
            raise FedclipError(
                f"--pretrained {name.pretrained}: no such file; the weights of a timm model are "
                f"named in --model ({TIMM}NAME.TAG), so leave out --pretrained, or pass a file or "
                f"{RANDOM}"
            )
        return Path(name.pretrained)
    if config is None or not config.hf_hub_id or config.custom_load:
        raise FedclipError(
            f"{name.model}: timm names no weights for it on the hub that can be loaded safely; "
            f"add a tag ({TIMM}NAME.TAG), or pass a checkpoint file with --pretrained"
        )
    snapshot = look_up(Repository(config.hf_hub_id, MODEL))
    names = [config.hf_hub_filename] if config.hf_hub_filename else [_SAFE, _PICKLED]
    found = next((each for each in names if each in snapshot.files), names[0])
    try:
        folder = download(snapshot, [found], progress)
    except KeyError:
        raise FedclipError(
            f"{snapshot.repository}: has no {' or '.join(names)}; choose another --model"
        ) from None
    remember(snapshot)
    return folder / found


def _build(name: EncoderName, weights: Path | None) -> nn.Module:
    try:
        random = _create(name, pretrained=False)
        if weights is None:
            return random
        # timm strips the prefixes of training wrappers, and converts other layouts of the same
        # architecture.
        state = load_state_dict(str(weights), weights_only=True)
        overlay = {"state_dict": state}
        model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay)
        if missing := _unchanged(model, random):
            raise ValueError(f"they lack {missing[0]} and {len(missing) - 1} more")
    except Exception as error:
        raise FedclipError(
            f"{weights or name.model}: cannot be loaded as weights of {name.model} "
            f"({first_line(error)}); pass safetensors or a plain state_dict of this architecture"
        ) from None
    return model


def _create(name: EncoderName, **options: Any) -> nn.Module:
    torch.manual_seed(0)  # makes random weights reproducible
    return timm.create_model(_model_name(name), num_classes=0, **options)


def _unchanged(model: nn.Module, random: nn.Module) -> list[str]:
    """List the parameters that were drawn at random and not loaded.

    Without a classification head, timm accepts weights that lack any other parameter too.
    """
    drawn = dict(random.named_parameters())
    return [
        name
        for name, tensor in model.named_parameters()
        if tensor.requires_grad and tensor.std() > 0 and torch.equal(tensor, drawn[name])
    ]
