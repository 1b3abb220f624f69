"""Loads the encoder that a trained adapter needs, from the facts that the adapter records.

Importing this imports no encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache import FedclipError, image_key
from ...cache.common.progress import Progress, no_progress
from ...cache.key import EncoderFacts, differing_facts
from ..datasets.registry import SampleKind
from .registry import family_of, load_encoder
from .spec import DEMO_MODEL, OWN, TRANSFORMERS, EncoderName, bare, in_folder, is_file, names_folder

if TYPE_CHECKING:
    import torch

    from .base import SampleEncoder


def samples_of(facts: EncoderFacts) -> SampleKind:
    """Return what the encoder that has these facts encodes; images if it is not known."""
    return family_of(EncoderName(str(facts.get("model", "")), None)).samples


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
    if "weights_sha256" not in facts and not _towers(facts):
        raise FedclipError(
            "the adapter was trained on imported features, so images cannot be encoded for it; "
            "predict a cache with --cache"
        )
    if model is None and pretrained is None and request is not None:
        name = _requested(request)
        if name is not None and _shown(name) == (facts.get("model"), facts.get("pretrained")):
            return name
    if towers := _towers(facts):
        if model is not None or pretrained is not None:
            raise FedclipError(
                f"--{'pretrained' if model is None else 'model'} {model or pretrained}: the "
                "adapter needs several encoders, which are used from where they were; leave it out"
            )
        first, *others = map(recorded_name, towers)
        return replace(first, others=tuple(others))
    shown = str(facts.get("model", "")), str(facts.get("pretrained", ""))
    model = model or _place(shown[0], facts)
    if pretrained is None and shown[1] != OWN and not names_folder(model):
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
        pooling=facts.get("pooling") if model.startswith(TRANSFORMERS) else None,
    )


def _towers(facts: EncoderFacts) -> list[EncoderFacts]:
    """Return the facts of each encoder that is joined; none for a single one."""
    groups: list[Any] = [facts.groups[group].get(group) for group in ("shared", "image", "text")]
    models, weights = (str(facts.get(name, "")).split(" + ") for name in ("model", "pretrained"))
    if not all(isinstance(each, list) and len(each) == len(models) for each in (weights, *groups)):
        return []
    if not all(isinstance(each, dict) for of_all in groups for each in of_all):
        return []
    abouts = [
        {"model": model, "pretrained": pretrained}
        for model, pretrained in zip(models, weights, strict=True)
    ]
    return [EncoderFacts(*of_one) for of_one in zip(*groups, abouts, strict=True)]


def _shown(name: EncoderName) -> tuple[str, str]:
    """Return models and weights as a cache records them, of all encoders that are joined."""
    models, weights = zip(*(each.shown for each in name.each), strict=True)
    return " + ".join(models), " + ".join(weights)


def _place(shown: str, facts: EncoderFacts) -> str:
    if not names_folder(shown):
        return shown
    if shown == EncoderName(DEMO_MODEL, None).shown[0]:
        return DEMO_MODEL
    raise FedclipError(
        f"the adapter needs the encoder {shown}{_sha256(facts)}, a folder that is not here; pass "
        f"it with --model {in_folder(shown, 'FOLDER')}"
    )


def _sha256(facts: EncoderFacts) -> str:
    return f" (SHA-256 {str(facts['weights_sha256'])[:12]}...)"


def _requested(request: Mapping[str, Any]) -> EncoderName | None:
    """Return the name that a manifest records, if its files are still here."""
    try:
        name = EncoderName.from_json(request)
    except (TypeError, AttributeError):
        return None
    return None if any(map(_gone, name.each)) else name


def _gone(name: EncoderName) -> bool:
    """Return whether an encoder's folder or file is no longer there."""
    folder, file = Path(bare(name.model)), Path(name.pretrained or "")
    return (folder.is_absolute() and not folder.is_dir()) or (
        bool(file.suffix) and not file.is_file()
    )


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
    encoder = load_encoder(name, device, progress)
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
