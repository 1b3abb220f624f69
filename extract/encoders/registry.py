"""The families of encoders: the module that loads a model, and the libraries it depends on.

Importing this imports no encoder.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, cast

from ...cache.common.progress import Progress, no_progress
from .spec import TIMM, TRANSFORMERS, EncoderName

if TYPE_CHECKING:
    from types import ModuleType

    import torch

    from .base import Encoder


class Family(NamedTuple):
    """Encoders of one library.

    Attributes:
        prefix: Start of their models' names.
        module: The module beside this one with `load_encoder` and `fetch_encoder`.
        libraries: Distributions whose versions may change what an image is encoded to.
    """

    prefix: str
    module: str
    libraries: tuple[str, ...]


# One line per family; the first one whose prefix matches is used.
FAMILIES = (
    Family(TIMM, "timm", ("timm", "torch", "torchvision", "pillow")),
    Family(TRANSFORMERS, "transformers", ("transformers", "tokenizers", "torch")),
    Family("", "openclip", ("open_clip_torch", "torch", "torchvision", "pillow")),
)


def family_of(name: EncoderName) -> Family:
    """Find the family that a model belongs to."""
    return next(family for family in FAMILIES if name.model.startswith(family.prefix))


def library_versions(name: EncoderName) -> dict[str, str]:
    """Look up the versions of the libraries that encode, without importing them."""
    return {library: version(library) for library in family_of(name).libraries}


def fetch_encoder(name: EncoderName, progress: Progress = no_progress) -> None:
    """Download the files of an encoder that are not on this machine.

    Raises:
        FedclipError: a file is missing and cannot be downloaded.
    """
    _module(name).fetch_encoder(name, progress)


def load_encoder(name: EncoderName, device: torch.device) -> Encoder:
    """Build an encoder, load its weights and collect the facts that identify it.

    Raises:
        FedclipError: the model is unknown, or its weights are missing, do not fit or cannot
            be loaded safely.
    """
    return cast("Encoder", _module(name).load_encoder(name, device))


def _module(name: EncoderName) -> ModuleType:
    from .compiler import deferred_compiler

    with nullcontext() if name.compiled else deferred_compiler():
        return import_module(f".{family_of(name).module}", __package__)
