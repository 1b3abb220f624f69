"""Encoders of timm: image models without a text side, such as ViT, DINOv2 and ConvNeXt.

An image's vector is the pooled feature before the classification head, which timm returns from
``forward_head(forward_features(x), pre_logits=True)``. Images are preprocessed as the model's own
config requires, with timm's transform for evaluation.

``timm:NAME.TAG`` is a model of timm's registry. One that somebody trained comes with a config of
its own, in a folder as ``timm.models.save_for_hf`` writes it or in a repository that has the same
files: ``timm:local-dir:FOLDER`` and ``timm:hf-hub:OWNER/NAME``, as ``timm.create_model`` has it.

Any error that timm, torch or the hub's client raises on weights or configs is reported in one line.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
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
from .base import (
    DTYPES,
    Launched,
    Launcher,
    check_finite,
    check_unused,
    compiled,
    facts_of,
    quiet,
)
from .spec import HF_HUB, LOCAL_DIR, RANDOM, TIMM, EncoderName, is_file
from .transforms import Decoder, PillowDecoder, Transform

_CONFIG = "config.json"
_NAMES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


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


@dataclass(frozen=True)
class _Place:
    """Where a model is on this machine.

    Attributes:
        model: What ``timm.create_model`` takes: a name of the registry, or a folder.
        architecture: The name of the architecture.
        arguments: What its config passes to the architecture.
        weights: The file of its weights; None for random ones.
        sources: All of its files.
    """

    model: str
    architecture: str
    arguments: Mapping[str, Any]
    weights: Path | None
    sources: tuple[Path, ...]


def fetch_encoder(name: EncoderName, progress: Progress = no_progress) -> None:
    """Download a model's files if they are on the hub and not on this machine.

    Raises:
        FedclipError: a file is missing and cannot be downloaded.
    """
    _find(name, progress)


def load_encoder(name: EncoderName, device: torch.device) -> TimmEncoder:
    """Build a model, load its weights and collect the facts that identify it.

    Raises:
        FedclipError: the model is unknown, or its weights are missing, do not fit or cannot be
            loaded safely.
    """
    place = _find(name)
    with quiet(), torch.random.fork_rng(devices=[]):
        model = _build(name, place)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    decode = _decoder(name, place, config)
    facts = facts_of(
        name,
        "timm",
        model,
        file_sha256(place.weights) if place.weights else None,
        shared={
            "architecture": place.architecture,
            **({"arguments": place.arguments} if place.arguments else {}),
        },
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
        place=place.sources[0] if place.sources else None,
    )
    return TimmEncoder(
        name=name,
        facts=facts,
        sources=place.sources,
        model=model.to(DTYPES[name.precision]).eval().requires_grad_(False).to(device),
        decode=decode,
        device=device,
    )


def _decoder(name: EncoderName, place: _Place, config: Mapping[str, Any]) -> Decoder:
    if name.resizer != "pillow":
        raise FedclipError(
            f"--resizer {name.resizer}: {name.model} is preprocessed by timm's own transform; use "
            "--resizer pillow"
        )
    keeps_aspect = config["crop_mode"] != "squash"
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    try:
        transform: Transform = create_transform(**config, is_training=False)
        side = math.floor(max(config["input_size"][1:]) / config["crop_pct"])
        decoder = PillowDecoder(_InColour(transform), side if keeps_aspect else None)
        pixels = decoder(picture.getvalue())
        if list(pixels.shape) != [3, *config["input_size"][1:]] or not pixels.isfinite().all():
            raise ValueError(f"it makes pixels of shape {tuple(pixels.shape)}")
    except Exception as error:
        raise FedclipError(
            f"{place.model}: images cannot be preprocessed by its config ({first_line(error)}); "
            "check input_size, mean, std, interpolation, crop_pct and crop_mode"
        ) from None
    return decoder


def _find(name: EncoderName, progress: Progress = no_progress) -> _Place:
    """Find a model on this machine, and download it first if it is on the hub.

    Raises:
        FedclipError: the model is unknown, or has no weights that can be loaded safely.
    """
    model = name.model.removeprefix(TIMM)
    if model.startswith(LOCAL_DIR):
        return _in_folder(name, Path(model.removeprefix(LOCAL_DIR)).absolute())
    if model.startswith(HF_HUB):
        wanted = [[_CONFIG], *([_NAMES] if name.pretrained != RANDOM else [])]
        repository = Repository(model.removeprefix(HF_HUB), MODEL, prefix=HF_HUB)
        return _in_folder(name, _download(repository, wanted, progress)[0])
    weights = _registered_weights(name, model, progress)
    return _Place(model, model.partition(".")[0], {}, weights, (weights,) if weights else ())


def _in_folder(name: EncoderName, folder: Path) -> _Place:
    """Read where a folder's config and weights are.

    Raises:
        FedclipError: it has no config, or one of an unknown architecture, or not one file of
            weights.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        architecture, arguments = config["architecture"], config.get("model_args") or {}
    except OSError as error:
        raise FedclipError(
            f"{error.filename}: {error.strerror}; {name.model} needs a folder with {_CONFIG} and "
            "weights, as timm.models.save_for_hf writes it"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FedclipError(
            f"{folder / _CONFIG}: is not a config of timm; it needs at least an architecture"
        ) from None
    if not isinstance(architecture, str) or not isinstance(arguments, dict):
        raise FedclipError(
            f"{folder / _CONFIG}: architecture must be a name, and model_args an object"
        )
    _check_registered(architecture)
    weights = None if name.pretrained == RANDOM else folder / _choose(name, [f.name for f in files])
    # The folder itself changes when a file is added that would be preferred.
    return _Place(f"{LOCAL_DIR}{folder}", architecture, arguments, weights, (folder, *files))


def _choose(name: EncoderName, files: Sequence[str]) -> str:
    """Choose the weights among a folder's files, by timm's own preference."""
    found = [each for each in files if each.endswith(_SUFFIXES)]
    best = next((each for each in _NAMES if each in found), None)
    if best is None and len(found) != 1:
        raise FedclipError(
            f"{name.model}: has {len(found)} files of weights ({', '.join(_SUFFIXES)}); keep one, "
            f"or name one {_NAMES[0]}"
        )
    return best or found[0]


def _check_registered(architecture: str) -> None:
    if not timm.is_model(architecture):
        known = [f"{TIMM}{each}" for each in timm.list_models()]
        raise FedclipError(
            f"unknown model {f'{TIMM}{architecture}'!r}"
            f"{suggest(f'{TIMM}{architecture}', known)} "
            "(python -c 'import timm; print(timm.list_models())' lists all)"
        )


def _config(model: str) -> Any:
    """Return timm's config of pretrained weights.

    Raises:
        FedclipError: the model or its tag is unknown.
    """
    architecture = model.partition(".")[0]
    _check_registered(architecture)
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError:
        tags = [f"{TIMM}{each}" for each in timm.list_pretrained(f"{architecture}*")]
        raise FedclipError(
            f"unknown weights {f'{TIMM}{model}'!r}{suggest(f'{TIMM}{model}', tags)}"
        ) from None


def _registered_weights(name: EncoderName, model: str, progress: Progress) -> Path | None:
    """Find the weights of a model of the registry, and download them if they are on the hub.

    Raises:
        FedclipError: the model is unknown, or has no weights that can be loaded safely.
    """
    config = _config(model)
    if name.pretrained == RANDOM:
        return None
    if name.pretrained is not None:
        if not is_file(name.pretrained):
            raise FedclipError(
                f"--pretrained {name.pretrained}: no such file; the weights of a timm model are "
                f"named in --model ({TIMM}NAME.TAG), so leave out --pretrained, or pass a file or "
                f"{RANDOM}"
            )
        return Path(name.pretrained).absolute()
    if config is None or not config.hf_hub_id or config.custom_load:
        raise FedclipError(
            f"{name.model}: timm names no weights for it on the hub that can be loaded safely; "
            f"add a tag ({TIMM}NAME.TAG), or pass a checkpoint file with --pretrained"
        )
    names = [config.hf_hub_filename] if config.hf_hub_filename else _NAMES
    folder, (weights,) = _download(
        Repository(config.hf_hub_id, MODEL, prefix=HF_HUB), [names], progress
    )
    return folder / weights


def _download(
    repository: Repository, wanted: Sequence[Sequence[str]], progress: Progress
) -> tuple[Path, list[str]]:
    """Download files of a repository.

    Args:
        repository: The repository.
        wanted: Names of each file, of which the first one that exists is downloaded.
        progress: Called with the bytes that have arrived.

    Returns:
        The folder that contains them, and their names.

    Raises:
        FedclipError: the repository lacks a file, or cannot be reached.
    """
    snapshot = look_up(repository)
    files = [next((each for each in names if each in snapshot.files), names[0]) for names in wanted]
    if not snapshot.partial:
        for names, file in zip(wanted, files, strict=True):
            if file not in snapshot.files:
                raise FedclipError(
                    f"{repository}: has no {' or '.join(names)}; choose another --model"
                )
    folder = download(snapshot, files, progress)
    remember(snapshot)
    return folder, files


def _build(name: EncoderName, place: _Place) -> nn.Module:
    try:
        random = _create(place, None)
        if place.weights is None:
            return random
        # timm strips the prefixes of training wrappers, and converts other layouts of the same
        # architecture.
        weights = load_state_dict(str(place.weights), weights_only=True)
        model = _create(place, weights)
        if missing := _unchanged(model, random):
            raise ValueError(f"they lack {missing[0]} and {len(missing) - 1} more")
        check_finite(model.state_dict())
        if model.state_dict().keys() <= weights.keys():  # they are of timm's own layout
            heads = _heads(model)
            unused = weights.keys() - model.state_dict().keys()
            check_unused(model, [each for each in unused if not each.startswith(heads)])
    except Exception as error:
        raise FedclipError(
            f"{place.weights or name.model}: cannot be loaded as weights of {name.model} "
            f"({first_line(error)}); pass safetensors or a plain state_dict of this architecture"
        ) from None
    return model


def _create(place: _Place, weights: Mapping[str, Any] | None) -> nn.Module:
    torch.manual_seed(0)  # makes random weights reproducible
    registered = timm.get_pretrained_cfg(place.architecture)
    overlay = {
        "state_dict": weights,
        # A config may name another source, which has priority over weights that are passed, and
        # lack the name of the classifier, whose weights are to be ignored.
        "source": "",
        "custom_load": False,
        **({"classifier": registered.classifier} if registered else {}),
    }
    return timm.create_model(
        place.model,
        num_classes=0,
        pretrained=weights is not None,
        pretrained_cfg_overlay=overlay,
    )


def _heads(model: Any) -> tuple[str, ...]:
    """Return how the names of a classifier's weights begin, with what surrounds its last layer."""
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(each.split(".")[0] for each in ([names] if isinstance(names, str) else names))


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
