"""Encoders of open_clip: every CLIP that it can build.

Any error that open_clip, torch or the hub's client raises on weights or configs is reported in
one line as a fault of these files.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.fields import suggest
from ...cache.key import EncoderFacts
from ..datasets.registry import SampleKind
from .base import (
    Launched,
    Launcher,
    Vectors,
    compiled,
    facts_of,
    inference,
    pad_batch,
    quiet,
    tokenizer_sha256,
)
from .checkpoint import Checkpoint, load_weights, read_checkpoint
from .spec import HF_HUB, LOCAL_DIR, RANDOM, EncoderName, is_file
from .transforms import Decoder, make_decoder
from .weights import fetch_encoder

logger = logging.getLogger(__name__)

__all__ = ["OpenClipEncoder", "fetch_encoder", "load_encoder"]

CONFIG_FILE = "open_clip_config.json"

# open_clip's order of preference among several weight files in a folder.
_WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")

# The prompts published with CLIP for ImageNet, by the names in `prompts.TEMPLATE_SETS`.
PUBLISHED_TEMPLATES: Mapping[str, Sequence[Callable[[str], str]]] = {
    "openai7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    "openai80": open_clip.OPENAI_IMAGENET_TEMPLATES,
}

# What the names of open_clip's architectures with QuickGELU end with.
QUICK_GELU = "-quickgelu"

# Size of every batch of prompts; small, since most datasets have few classes.
TEXT_BATCH = 16


@dataclass(frozen=True, eq=False)
class OpenClipEncoder:
    """A frozen CLIP on a device, a `SampleEncoder` and a `TextEncoder`.

    Attributes:
        name: The encoder as the user names it.
        facts: The facts that identify it.
        sources: The files on this machine that it was loaded from.
        model: The network, in evaluation mode.
        decode: Function from an image file's bytes to (3, H, W) float32 pixels.
        tokenizer: Function from prompts to (N, L) int64 tokens.
        logit_scale: ``exp(logit_scale)``.
        device: The device it runs on.
    """

    name: EncoderName
    facts: EncoderFacts
    sources: tuple[Path, ...]
    model: nn.Module
    decode: Decoder
    tokenizer: Callable[[list[str]], Tensor]
    logit_scale: float
    device: torch.device

    samples: SampleKind = "images"

    @property
    def blank(self) -> Tensor:
        """Black pixels, (3, H, W) float32."""
        return torch.zeros(3, *self.facts["image_size"])

    def launch(self, inputs: Tensor) -> Launched:
        """Start encoding (B, 3, H, W) float32 pixels to (B, D) float32 raw features."""
        return self._launcher(inputs)

    def image_network(self) -> nn.Module:
        """Return the image side, without the text side where it is a module of its own."""
        whole = _ImageSide(self.model)
        visual = getattr(self.model, "visual", None)
        if isinstance(visual, nn.Module):
            pixels = self.blank[None].to(
                self.device, open_clip.get_input_dtype(self.name.precision)
            )
            with inference():
                own = visual(pixels)
                if isinstance(own, Tensor) and torch.equal(own, whole(pixels)):
                    return visual
        return whole

    @property
    def resizing(self) -> Mapping[str, Any]:
        """How images are resized, as `ImageEncoder` has it."""
        fill = self.facts.get("fill_color", 0)
        return {
            "resize": self.facts["resize"],
            "resized": self.facts["image_size"],
            "interpolation": "bilinear" if self.facts["interpolation"] == "bilinear" else "bicubic",
            "fill": [fill] * 3 if isinstance(fill, int) else list(fill),
        }

    def encode_texts(self, prompts: Sequence[str], batch_size: int = TEXT_BATCH) -> Vectors:
        """Encode N prompts to (N, D) float32 raw features, in batches of one shape."""
        tokens = self.tokenizer(list(prompts))
        with inference():
            features = [
                self.model.encode_text(  # type: ignore[operator]
                    pad_batch(batch, batch_size).to(self.device), normalize=False
                )
                .float()
                .cpu()
                for batch in torch.split(tokens, batch_size)
            ]
        array: Vectors = torch.cat(features)[: len(prompts)].numpy()
        return array

    @cached_property
    def _launcher(self) -> Launcher:
        encode: Callable[..., Tensor] = self.model.encode_image  # type: ignore[assignment]
        if self.name.compiled:
            encode = compiled(encode)
        dtype = open_clip.get_input_dtype(self.name.precision)

        def raw(pixels: Tensor) -> Tensor:
            return encode(pixels.to(dtype), normalize=False)

        return Launcher(raw, self.device)


class _ImageSide(nn.Module):
    """Encodes images with a whole CLIP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]
        return features


def load_encoder(name: EncoderName, device: torch.device) -> OpenClipEncoder:
    """Build an encoder, load its weights and collect the facts that identify it.

    Raises:
        FedclipError: the model or tag is unknown, or its weights are missing, do not fit or
            cannot be loaded safely.
    """
    config = _model_config(name.model)
    tag = _tag_config(name)
    with quiet(), torch.random.fork_rng(devices=[]):
        weights = _weights_file(name, tag)
        checkpoint = _read(name, weights) if weights else None
        quick_gelu = bool(tag.get("quick_gelu") or (checkpoint and checkpoint.quick_gelu))
        torch.manual_seed(0)  # makes random weights reproducible
        model = _build(name, tag, quick_gelu=quick_gelu)
        resized = _load(name, model, checkpoint) if checkpoint else []
        tokenizer = _tokenizer(name.model, config)
    if checkpoint is not None:
        _log_weights(
            name, checkpoint, resized, plain=not config.get("quick_gelu"), tagged=bool(tag)
        )
    if quick_gelu:
        config["quick_gelu"] = True
        _check_quick_gelu(name, model)
    decode, preprocessing = _preprocess(name, model)
    facts = facts_of(
        name,
        "open_clip",
        model,
        checkpoint.sha256 if checkpoint else None,
        shared={"architecture": config},
        image={**preprocessing, "decoder": "pillow", "resizer": name.resizer},
        text={"tokenizer": tokenizer_sha256(tokenizer)},
        place=weights,
    )
    return OpenClipEncoder(
        name=name,
        facts=facts,
        sources=_sources(name, weights),
        model=model.eval().requires_grad_(False).to(device),
        decode=decode,
        tokenizer=tokenizer,
        logit_scale=float(model.logit_scale.exp()),  # type: ignore[operator]
        device=device,
    )


def open_clip_decoder(preprocess: PreprocessCfg, resizer: str) -> Decoder:
    """Make a decoder that follows `preprocess`, with open_clip's own transform as the reference.

    Raises:
        FedclipError: the resizer cannot resize as the encoder requires.
    """
    return make_decoder(preprocess, resizer, image_transform_v2(preprocess, is_train=False))


def _preprocess(name: EncoderName, model: nn.Module) -> tuple[Decoder, dict[str, Any]]:
    """Return a model's decoder and the facts that describe it."""
    asked = open_clip.get_model_preprocess_cfg(model)
    try:
        preprocess = PreprocessCfg(**asked)
        return open_clip_decoder(preprocess, name.resizer), _preprocess_facts(preprocess)
    except FedclipError:
        raise
    except Exception as error:  # invalid values raise errors of many types
        raise FedclipError(
            f"{name.model}: its preprocess_cfg {asked} is invalid ({first_line(error)}); fix the "
            "config"
        ) from None


def _preprocess_facts(preprocess: PreprocessCfg) -> dict[str, Any]:
    facts = asdict(preprocess)
    size = facts.pop("size")
    return {
        "image_size": [size, size] if isinstance(size, int) else list(size),
        "mean": list(facts.pop("mean")),
        "std": list(facts.pop("std")),
        "resize": facts.pop("resize_mode"),
        **facts,
    }


def _model_config(model: str) -> dict[str, Any]:
    """Read the architecture's config from open_clip."""
    try:
        with quiet():
            config = open_clip.get_model_config(model)
    except Exception as error:
        if model.startswith(LOCAL_DIR) and isinstance(error, FileNotFoundError):
            raise FedclipError(
                f"{model}: has no {CONFIG_FILE}; pass a folder that open_clip has saved"
            ) from None
        raise FedclipError(
            f"{model}: its config cannot be loaded ({first_line(error)}); check the name"
        ) from None
    if config is None:
        models = open_clip.list_models()
        raise FedclipError(
            f"unknown model {model!r}{suggest(model, models)} "
            "(python -c 'import open_clip; print(open_clip.list_models())' lists all)"
        )
    return dict(config)


def _tag_config(name: EncoderName) -> Mapping[str, Any]:
    """Return open_clip's config of a tag; empty for files, places and random weights."""
    if name.pretrained is None or name.pretrained == RANDOM or is_file(name.pretrained):
        return {}
    tag: Mapping[str, Any] = open_clip.get_pretrained_cfg(name.model, name.pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(name.model)
        raise FedclipError(
            f"unknown weights {name.pretrained!r} of {name.model}, and no such file"
            f"{suggest(name.pretrained, [*tags, RANDOM])} "
            "(write a file without a suffix as ./NAME)"
        )
    return tag


def _weights_file(name: EncoderName, tag: Mapping[str, Any]) -> Path | None:
    """Find the weights on this machine, and download them first if they come from a hub."""
    if name.pretrained == RANDOM:
        return None
    if name.model.startswith(LOCAL_DIR):
        return _weights_in_folder(Path(name.model.removeprefix(LOCAL_DIR)))
    try:
        if name.model.startswith(HF_HUB):
            return Path(download_pretrained_from_hf(name.model.removeprefix(HF_HUB)))
        if tag:
            return Path(open_clip.download_pretrained(tag))
    except Exception as error:
        raise FedclipError(
            f"{name.model} {name.pretrained or ''}: the weights cannot be downloaded "
            f"({first_line(error)}); pass a local checkpoint file with --pretrained, or a folder "
            "with --model local-dir:FOLDER"
        ) from None
    assert name.pretrained is not None
    return Path(name.pretrained)


def _sources(name: EncoderName, weights: Path | None) -> tuple[Path, ...]:
    if name.model.startswith(LOCAL_DIR):
        # The folder itself changes when a file is added that would be preferred.
        folder = Path(name.model.removeprefix(LOCAL_DIR)).absolute()
        return folder, *sorted(path for path in folder.iterdir() if path.is_file())
    return (weights.absolute(),) if weights else ()


def _weights_in_folder(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    preferred = [folder / name for name in _WEIGHT_NAMES if folder / name in files]
    if preferred:
        return preferred[0]
    if len(files) != 1:
        raise FedclipError(
            f"{folder}: contains {len(files)} weight files ({', '.join(_WEIGHT_SUFFIXES)}); "
            f"keep exactly one, or name one {_WEIGHT_NAMES[0]}"
        )
    return files[0]


def _read(name: EncoderName, weights: Path) -> Checkpoint:
    with _faults_of(name, weights):
        return read_checkpoint(weights)


def _build(name: EncoderName, tag: Mapping[str, Any], *, quick_gelu: bool) -> nn.Module:
    """Build a network with random weights; a tag also sets how images are preprocessed."""
    with _faults_of(name, None), _without_code():
        model: nn.Module = open_clip.create_model(
            name.model,
            pretrained=name.pretrained if tag else None,
            precision=name.precision,
            force_quick_gelu=quick_gelu,
            load_weights=False,  # we load them ourselves, so that the hashed file is the loaded one
            pretrained_text=False,
        )
    return model


@contextmanager
def _without_code() -> Iterator[None]:
    """Keep transformers from asking the user whether to run the code of a text tower's config."""
    dynamic = sys.modules.get("transformers.dynamic_module_utils")
    asking = getattr(dynamic, "TIME_OUT_REMOTE_CODE", None)
    if asking is None:
        yield
        return
    vars(dynamic)["TIME_OUT_REMOTE_CODE"] = 0  # seconds; 0 is an error in place of the question
    try:
        yield
    finally:
        vars(dynamic)["TIME_OUT_REMOTE_CODE"] = asking


def _load(name: EncoderName, model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    with _faults_of(name, checkpoint.path):
        return load_weights(model, checkpoint)


@contextmanager
def _faults_of(name: EncoderName, weights: Path | None) -> Iterator[None]:
    """Put whatever is wrong with weights, or with a config, into one line."""
    try:
        yield
    except Exception as error:
        reason = f"it {error}" if isinstance(error, FedclipError) else first_line(error)
        raise FedclipError(
            f"{weights or name.model}: cannot be loaded as weights of {name.model} ({reason}); "
            "pass safetensors or a plain state_dict of this architecture"
        ) from None


def _log_weights(
    name: EncoderName, checkpoint: Checkpoint, resized: Sequence[str], *, plain: bool, tagged: bool
) -> None:
    """Say what the weights do not say themselves.

    Args:
        name: The encoder as the user names it.
        checkpoint: Its weights.
        resized: Position embeddings that were resized.
        plain: Whether the architecture has GELU, unless the weights ask for QuickGELU.
        tagged: Whether open_clip knows the weights by their tag.

    Raises:
        FedclipError: the weights are known to need GELU, and the architecture has QuickGELU.
    """
    path, quick_gelu = checkpoint.path, checkpoint.quick_gelu
    if resized:
        logger.warning(
            "%s: is for images or texts of another size than %s takes; %s was resized",
            *(path, name.model, " and ".join(resized)),
        )
    if tagged:
        return
    if quick_gelu is False and not plain:
        raise FedclipError(
            f"{path}: these weights were trained with GELU, and {name.model} has QuickGELU; pass "
            f"--model {name.model.removesuffix(QUICK_GELU)}"
        )
    if quick_gelu and plain:
        logger.info("weights    %s: trained with QuickGELU, which is used", path.name)
    elif quick_gelu is None and plain and name.model + QUICK_GELU in open_clip.list_models():
        logger.warning(
            "%s: nothing in it tells whether it was trained with GELU, which is used, or with "
            "QuickGELU, as OpenAI's weights were; for QuickGELU pass --model %s",
            *(path, name.model + QUICK_GELU),
        )


def _tokenizer(model: str, config: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    try:
        # A config can ask to run code from its repository; this argument overrides it.
        hub = bool(config["text_cfg"].get("hf_tokenizer_name"))
        options = {"trust_remote_code": False} if hub else {}
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(model, **options)
    except ModuleNotFoundError as error:
        raise FedclipError(
            f"{model}: its tokenizer needs the package {error.name}; install it with "
            f"'pip install {error.name}'"
        ) from None
    except Exception as error:
        raise FedclipError(
            f"{model}: its tokenizer cannot be loaded ({first_line(error)}); fix the config"
        ) from None
    return tokenizer


def _check_quick_gelu(name: EncoderName, model: nn.Module) -> None:
    kinds = {type(module).__name__ for module in model.modules()}
    if "QuickGELU" not in kinds or "GELU" in kinds:
        raise FedclipError(
            f"{name.model} {name.pretrained}: these weights were trained with QuickGELU, but "
            "this architecture does not use it; choose the model's -quickgelu variant"
        )
