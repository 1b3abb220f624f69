"""A trained adapter in use: features of images to probabilities of classes.

A saved adapter is one safetensors file with all that this takes: the parameters, the class vectors
(those of the class texts, or what stands in for them) and, as JSON in its metadata, the facts of
`Experiment.facts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...cache import CacheError, EncoderFacts, FedclipError, image_key
from ...cache.common.errors import first_line
from ...cache.common.files import replacing
from ...cache.common.text import counted
from ...cache.key import canonical_json
from ..settings import CLASS_VECTORS, HEAD, TEXT
from .adapters import ADAPTERS, Adapter
from .heads import WithHead
from .losses import cosine_logits
from .network import Network

# Version of the facts in the metadata of saved parameters. Version 2 had no class texts.
FACTS_VERSION = 3

# The class vectors among a file's tensors; neither a parameter nor a client can have this name.
CLASS_TEXTS = "@class_texts"

Features = npt.NDArray[np.float32]

# No number of the facts is larger; neither NaN nor an infinity is smaller.
_LARGEST = 1e18


def _is_dict(value: Any, kinds: type | tuple[type, ...] = object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, kinds) for each in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < _LARGEST


def _is_split(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("seed"))
        and all(isinstance(value.get(name, 0), str | None) for name in ("target", "partition"))
        and _is_dict(value.get("options"))
        and _is_dict(value.get("domains", {}), str)
        and _is_dict(value.get("rows", {}), int)
    )


# Facts that a classifier is made from, and whether a value from a file may be one.
_NEEDED: Mapping[str, Callable[[Any], bool]] = {
    "adapter": lambda value: isinstance(value, str),
    "options": _is_dict,
    "encoder": _is_dict,
    "key": lambda value: isinstance(value, str),
    "dataset": lambda value: isinstance(value, str),
    "embed_dim": _is_count,
    "class_names": _is_texts,
    "prompts": _is_texts,
    "feature_norm": lambda value: value is None or _is_positive(value),
    "logit_scale": _is_positive,
    "settings": _is_dict,
    "split": _is_split,
    "batch_size": lambda value: value is None or (_is_count(value) and value > 0),
}


class OldFactsError(FedclipError):
    """Parameters that an earlier version saved, without all that using them takes."""


@dataclass(frozen=True)
class Scores:
    """What a classifier makes of B samples and C classes.

    Attributes:
        adapted: (B, C) logits of the trained adapter.
        zero_shot: (B, C) logits of the encoder alone; None if zero-shot is not defined.
    """

    adapted: Tensor
    zero_shot: Tensor | None

    def top(self, k: int) -> tuple[Ranked, Ranked | None]:
        """Return the k best classes of each sample, adapted and zero-shot."""
        zero_shot = None if self.zero_shot is None else Ranked.of(self.zero_shot, k)
        return Ranked.of(self.adapted, k), zero_shot


@dataclass(frozen=True)
class Ranked:
    """The best classes of B samples, best first.

    Attributes:
        classes: (B, k) int64, as indices.
        probabilities: (B, k) float32.
    """

    classes: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int) -> Self:
        """Rank by logits, which rounding does not make equal as it does probabilities."""
        if k == 1:  # the same as the first below, without sorting
            classes = logits.argmax(dim=1, keepdim=True)
        else:
            classes = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
        return cls(classes, logits.softmax(dim=1).gather(1, classes))

    def rows(self) -> list[list[tuple[int, float]]]:
        """Return each sample's classes with their probabilities."""
        ranked = zip(self.classes.tolist(), self.probabilities.tolist(), strict=True)
        return [[*zip(classes, shares, strict=True)] for classes, shares in ranked]


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A trained adapter with the class vectors.

    Attributes:
        network: The adapter with its parameters.
        texts: (C, D) float32 class vectors: those of the class texts, or what stands in for them.
        facts: What the adapter belongs to.
    """

    network: Network
    texts: Tensor
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        return (
            f"<adapter {self.facts['adapter']} for {self.facts['dataset']}: {self.texts.shape[1]} "
            f"features, {counted(len(self.class_names), 'class', 'classes')}>"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return tuple(self.facts["class_names"])

    @property
    def encoder(self) -> EncoderFacts:
        """The encoder whose features the adapter takes."""
        return EncoderFacts.from_groups(self.facts["encoder"])

    @property
    def key(self) -> str:
        """The image key of that encoder."""
        return str(self.facts["key"])

    @property
    def logit_scale(self) -> float:
        """The encoder's ``exp(logit_scale)``."""
        return float(self.facts["logit_scale"])

    @property
    def zero_shot(self) -> bool:
        """Whether the class vectors are those of class texts, so that zero-shot is defined."""
        return bool(self.facts.get("class_vectors", TEXT) == TEXT)

    @property
    def client(self) -> str | None:
        """Whose own adapter it is; None if it is everybody's."""
        return self.facts.get("client")

    def to(self, device: torch.device) -> Classifier:
        """Move it to a device."""
        return Classifier(self.network.to(device), self.texts.to(device), self.facts)

    @torch.inference_mode()
    def __call__(self, features: Features) -> Scores:
        """Classify (B, D) raw float32 features, as the encoder returns them.

        Raises:
            FedclipError: their width is not the adapter's, or a row of zeros cannot be rescaled.
        """
        if features.ndim != 2 or features.shape[1] != self.texts.shape[1]:
            raise FedclipError(
                f"features of shape {features.shape}: the adapter takes {self.texts.shape[1]} "
                "features for each image; use the encoder that it was trained with"
            )
        rows = self._rescaled(np.ascontiguousarray(features, dtype=np.float32))
        inputs = torch.from_numpy(rows).to(self.texts.device)
        return Scores(
            self.network.logits(inputs, self.texts, self.logit_scale).cpu(),
            cosine_logits(inputs, self.texts, self.logit_scale).cpu() if self.zero_shot else None,
        )

    def _rescaled(self, features: Features) -> Features:
        norm = self.facts.get("feature_norm")
        if norm is None:
            return features
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        if not norms.all():
            raise FedclipError(
                "a sample has features of zeros, which cannot be rescaled to --feature-norm "
                f"{norm:g}; leave out this sample"
            )
        rescaled: Features = features * (np.float32(norm) / norms)
        return rescaled

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        tensors = {**self.network.state_dict(), CLASS_TEXTS: self.texts}
        copies = {
            name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(copies, temporary, metadata={"fedclip": canonical_json(dict(self.facts))})


def read_classifier(path: Path, client: str | None = None, *, trusted: bool = False) -> Classifier:
    """Read saved parameters as a classifier.

    Args:
        path: `adapter.safetensors`, or `personal.safetensors` with `client`.
        client: Whose own adapter to take.
        trusted: Whether an adapter from outside the package may be imported, if its source on
            this machine is the one that was trained.

    Raises:
        OldFactsError: an earlier version saved it.
        FedclipError: the file is damaged, of a later version, or not of an adapter that can be
            used here.
    """
    facts, tensors = _read(path)
    texts = tensors.pop(CLASS_TEXTS, None)
    if facts.get("model"):
        raise FedclipError(
            f"{path}: holds a full model; predict and export are for adapters, whose encoder is "
            "frozen"
        )
    version = facts.get("version", 1)
    if not isinstance(version, int) or version > FACTS_VERSION:
        raise FedclipError(
            f"{path}: has format version {version!r}, and this fedclip reads up to {FACTS_VERSION};"
            " update fedclip"
        )
    if version < FACTS_VERSION:
        raise OldFactsError(f"{path}: an earlier fedclip saved it, without class texts")
    for name, fits in _NEEDED.items():
        if not fits(facts.get(name)):
            raise FedclipError(f"{path}: is damaged (its {name!r} is missing or invalid)")
    if facts.get("class_vectors", TEXT) not in CLASS_VECTORS:
        raise FedclipError(
            f"{path}: has class vectors of a kind that this fedclip does not know "
            f"({facts['class_vectors']!r}); update fedclip"
        )
    if client is not None:
        tensors = _own(path, tensors, client)
        facts = {**facts, "client": client}
    return make_classifier(path, facts, tensors, texts, trusted=trusted)


def make_classifier(
    path: Path,
    facts: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    texts: Tensor | None,
    *,
    trusted: bool,
) -> Classifier:
    """Put parameters, class vectors and facts together.

    Raises:
        FedclipError: they do not fit each other, or the adapter cannot be used here.
    """
    classes, width = len(facts["class_names"]), facts["embed_dim"]
    if texts is None or tuple(texts.shape) != (classes, width) or not _is_finite(texts):
        raise FedclipError(f"{path}: is damaged (its class vectors are missing or invalid)")
    texts = texts.float()
    try:
        if image_key(EncoderFacts.from_groups(facts["encoder"])) != facts["key"]:
            raise CacheError("has an encoder that does not match its key")
    except CacheError as error:
        raise FedclipError(f"{path}: is damaged (it {error})") from None
    adapter = _adapter(path, facts, trusted=trusted)
    if not adapter.sends:
        raise FedclipError(
            f"{path}: the adapter {facts['adapter']} consists of a client's training samples, "
            "which a run does not keep; train another adapter"
        )
    model = WithHead(adapter) if facts.get("class_vectors") == HEAD else adapter
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise FedclipError(
                f"{path}: is damaged (its parameter {name!r} is not of finite numbers)"
            )
    try:
        network = model.make(texts, seed=0)
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise FedclipError(
            f"{path}: its parameters are not those of {model.title} ({first_line(error)})"
        ) from None
    return Classifier(network.eval().requires_grad_(False), texts, facts)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has real numbers, and none that is NaN or infinite."""
    return tensor.is_floating_point() and bool(tensor.float().isfinite().all())


def _adapter(path: Path, facts: Mapping[str, Any], *, trusted: bool) -> Adapter:
    """Make the adapter that facts describe; nothing of another package is run unasked."""
    name = facts["adapter"]
    if ADAPTERS.is_outside(name) and (":" in name or name in [*ADAPTERS]):
        if not trusted:
            raise FedclipError(
                f"{path}: needs the adapter {name} from outside fedclip, which is not run for a "
                "file that comes from elsewhere"
            )
        if ADAPTERS.source_hash(name) != facts.get("adapter_source"):
            raise FedclipError(
                f"{path}: the source of --adapter {name} is not the one that was trained; "
                "restore it"
            )
    try:
        return ADAPTERS.make(name, facts["options"])
    except (FedclipError, TypeError) as error:
        raise FedclipError(f"{path}: its adapter cannot be made ({first_line(error)})") from None


def _own(path: Path, tensors: Mapping[str, Tensor], client: str) -> dict[str, Tensor]:
    clients = sorted({name.partition("/")[0] for name in tensors})
    own = {
        name.removeprefix(f"{client}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{client}/")
    }
    if not own:
        from ...cache.common.fields import suggest

        raise FedclipError(f"--client {client}: has no adapter in {path}{suggest(client, clients)}")
    return own


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["fedclip"])
            if not isinstance(facts, dict):
                raise ValueError
            canonical_json(facts).encode()  # a ValueError if it has NaN or what is not UTF-8
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FedclipError(f"{path}: file not found") from None
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError):
        raise FedclipError(f"{path}: is not an adapter that fedclip saved, or damaged") from None
