"""Loads the encoder that a trained adapter needs, from the facts that the adapter records.

Importing this imports no encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache import FedclipError, image_key
from ...cache.common.progress import Progress, no_progress
from ...cache.key import EncoderFacts, differing_facts
from .registry import fetch_encoder, load_encoder
from .spec import DEMO_MODEL, LOCAL_DIR, EncoderName, is_file

if TYPE_CHECKING:
    import torch

    from .base import SampleEncoder

# What a cache records of weights that come with a folder or a repository.
_OWN = "own"


def recorded_name(
    facts: EncoderFacts,
    model: str | None = None,
    pretrained: str | None = None,
    request: Mapping[str, Any] | None = None,
) -> EncoderName:
    """Name the encoder that has these facts, so that it can be loaded.

    Args:
        facts: Those of the encoder that an adapter was trained with.
        model: Where its architecture is on this machine, such as ``local-dir:FOLDER``; None for
            where it was.
        pretrained: Where its weights are; None for where they were.
        request: What the manifest of the run's cache records, which has the folders of this
            machine.

    Raises:
        FedclipError: its weights are in a folder or file that is not known here, or the features
            came from no encoder that fedclip can load.
    """
    shown = str(facts.get("model", "")), str(facts.get("pretrained", ""))
    if "weights_sha256" not in facts:
        raise FedclipError(
            "the adapter was trained on imported features, so images cannot be encoded for it; "
            "predict a cache with --cache"
        )
    if model is None and pretrained is None and request is not None:
        name = _requested(request)
        if name is not None and name.shown == shown:
            return name
    model = model or _place(shown[0], facts)
    if pretrained is None and shown[1] != _OWN and not model.startswith(LOCAL_DIR):
        pretrained = shown[1]
        if Path(pretrained).suffix and not is_file(pretrained):  # a tag has no suffix
            raise FedclipError(
                f"the adapter needs the checkpoint {pretrained} of {model}{_sha256(facts)}, which "
                "is not here; pass it with --pretrained FILE"
            )
    return EncoderName.of(
        model,
        pretrained,
        str(facts.get("precision", "fp32")),
        str(facts.get("resizer", "pillow")),
        compiled=bool(facts.get("compiled")),
    )


def _place(shown: str, facts: EncoderFacts) -> str:
    if not shown.startswith(LOCAL_DIR):
        return shown
    if shown == EncoderName(DEMO_MODEL, None).shown[0]:
        return DEMO_MODEL
    raise FedclipError(
        f"the adapter needs the encoder {shown}{_sha256(facts)}, a folder that is not here; pass "
        "it with --model local-dir:FOLDER"
    )


def _sha256(facts: EncoderFacts) -> str:
    return f" (SHA-256 {str(facts['weights_sha256'])[:12]}...)"


def _requested(request: Mapping[str, Any]) -> EncoderName | None:
    """Return the name that a manifest records, if its files are still here."""
    try:
        name = EncoderName(**request)
    except TypeError:
        return None
    folder = Path(name.model.removeprefix(LOCAL_DIR))
    if name.model.startswith(LOCAL_DIR) and not folder.is_dir():
        return None
    file = Path(name.pretrained or "")
    return None if file.suffix and not file.is_file() else name


def load_recorded(
    name: EncoderName,
    facts: EncoderFacts,
    device: torch.device,
    progress: Progress = no_progress,
) -> SampleEncoder:
    """Load an encoder, downloading it first if necessary, and check that it has these facts.

    Raises:
        FedclipError: it is missing and cannot be downloaded, or is another one.
    """
    fetch_encoder(name, progress)
    encoder = load_encoder(name, device)
    if image_key(encoder.facts) != image_key(facts):
        differing = ", ".join(differing_facts(facts, encoder.facts))
        raise FedclipError(
            f"{' '.join(name.shown)}: is not the encoder that the adapter was trained with "
            f"({differing} differ), so its features would mean something else; pass the right one "
            "with --model and --pretrained"
        )
    from .base import SampleEncoder

    if not isinstance(encoder, SampleEncoder):
        raise FedclipError(f"{name.model}: encodes texts only")
    return encoder
