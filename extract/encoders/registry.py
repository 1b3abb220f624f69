"""The families of encoders: the module that loads a model, and the libraries it depends on.

Importing this imports no encoder.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, cast

from ...cache.common.files import regular
from ...cache.common.progress import Progress, no_progress
from ..datasets.registry import SampleKind
from .spec import TIMM, TRANSFORMERS, EncoderName, folder_of

if TYPE_CHECKING:
    from types import ModuleType

    import torch

    from .base import SampleEncoder


class Family(NamedTuple):
    """Encoders of one library.

    Attributes:
        prefix: Start of their models' names.
        samples: What they encode.
        module: The module beside this one with `load_encoder` and `fetch_encoder`.
        libraries: Distributions whose versions may change what an image is encoded to.
    """

    prefix: str
    samples: SampleKind
    module: str
    libraries: tuple[str, ...]


# One line per family; the first one whose prefix matches is used.
FAMILIES = (
    Family(TIMM, "images", "timm", ("timm", "torch", "torchvision", "pillow")),
    Family(TRANSFORMERS, "texts", "transformers", ("transformers", "tokenizers", "torch")),
    Family("", "images", "openclip", ("open_clip_torch", "torch", "torchvision", "pillow")),
)


def family_of(name: EncoderName) -> Family:
    """Find the family that a model belongs to."""
    return next(family for family in FAMILIES if name.model.startswith(family.prefix))


def library_versions(name: EncoderName) -> dict[str, str]:
    """Look up the versions of the libraries that encode, without importing them."""
    return {
        library: version(library) for each in name.each for library in family_of(each).libraries
    }


def load_encoder(
    name: EncoderName, device: torch.device, progress: Progress = no_progress
) -> SampleEncoder:
    """Build an encoder, or several that are joined, and collect the facts that identify it.

    Files that are not on this machine are downloaded first. Then the encoder is loaded from them
    without the network, so that the hub is asked once, and no library fetches anything else.

    Args:
        name: The encoder.
        device: The device that it runs on.
        progress: Called during downloads.

    Raises:
        FedclipError: the model is unknown, or its weights are missing, do not fit or cannot
            be downloaded or loaded safely.
    """
    from ..hub import offline

    for each in name.each:
        _check_files(each)
        _module(each).fetch_encoder(each, progress)
    with offline(True):
        towers = [
            cast("SampleEncoder", _module(each).load_encoder(each, device)) for each in name.each
        ]
    if not name.others:
        return towers[0]
    from .towers import join

    return join(name, towers)


def _check_files(name: EncoderName) -> None:
    """Refuse pipes and the like, which libraries would wait for, among an encoder's own files.

    Raises:
        FedclipError: there is one.
    """
    if folder := folder_of(name.model):
        for path in (*folder.glob("*"), *folder.glob("*/config.json")):
            regular(path)


def _module(name: EncoderName) -> ModuleType:
    from .compiler import deferred_compiler

    with nullcontext() if name.compiled else deferred_compiler():
        return import_module(f".{family_of(name).module}", __package__)
