"""Checks whether clients may be federated, and describes what differs if not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .common.errors import CacheError
from .key import EncoderFacts, differing_facts
from .schema import FeatureCache


class Described(Protocol):
    """What clients must agree on to be federated; a cache has it, and a site may tell it."""

    @property
    def client(self) -> str:
        """Name of the client."""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""

    @property
    def encoder(self) -> EncoderFacts:
        """Facts of the encoder."""

    @property
    def embed_dim(self) -> int:
        """Width of the features."""

    @property
    def logit_scale(self) -> float:
        """The encoder's ``exp(logit_scale)``."""

    @property
    def normalized(self) -> bool:
        """Whether the image features have norm 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes."""

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates."""


def check_compatible(paths: Sequence[Path], clients: Sequence[FeatureCache]) -> None:
    """Check that clients belong together: one encoder, the same classes and templates.

    Raises:
        CacheError: two clients differ; the message names them, their files and what differs.
    """
    first_path, first = paths[0], clients[0]
    seen: dict[str, Path] = {}
    for path, cache in zip(paths, clients, strict=True):
        if cache.client in seen:
            raise CacheError(
                f"{path} and {seen[cache.client]} both hold the client {cache.client!r}; "
                "keep one of them"
            )
        seen[cache.client] = path
        if cache.key != first.key:
            facts = ", ".join(differing_facts(first.encoder, cache.encoder))
            raise CacheError(
                f"{first_path} and {path} come from different encoders ({facts}), so their "
                "features cannot be compared; keep them in different folders"
            )
        differences = client_differences(first, cache)
        if not differences and not _close(cache.text_features, first.text_features):
            differences = ["text features"]
        if differences:
            raise CacheError(
                f"{first_path} and {path} differ in {' and '.join(differences)}; extract them "
                "again with the same --name, --class-names and --template"
            )


def check_comparable(cache: FeatureCache) -> None:
    """Check that a client's image features can be compared with its text features.

    Raises:
        CacheError: the client has no class texts, or the widths differ.
    """
    if not cache.templates:
        raise CacheError(
            f"{cache.client}: has no class texts to compare its images with; extract it with a "
            "model that encodes texts too, such as CLIP, or use --class-vectors means"
        )
    width = cache.text_features.shape[2]
    if width != cache.embed_dim:
        raise CacheError(
            f"{cache.client}: its image features are {cache.embed_dim} wide and its text features "
            f"{width}, so they cannot be compared; extract it with one model for both, such as "
            "CLIP, or use --class-vectors means"
        )


def cache_differences(
    one: Sequence[FeatureCache], other: Sequence[FeatureCache]
) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two caches by name: encoder facts, then contents."""
    encoders = one[0].encoder, other[0].encoder
    differences = {
        f"encoder {fact}": (encoders[0].get(fact), encoders[1].get(fact))
        for fact in differing_facts(*encoders)
    }
    for what in ("dataset", "logit_scale", "normalized", "class_names", "templates"):
        values = getattr(one[0], what), getattr(other[0], what)
        if values[0] != values[1]:
            differences[what.replace("_", " ")] = values
    rows = [{cache.client: len(cache.labels) for cache in caches} for caches in (one, other)]
    for client in sorted({**rows[0], **rows[1]}):
        counts = rows[0].get(client), rows[1].get(client)
        if counts[0] != counts[1]:
            differences[f"rows of {client}"] = counts
    return differences


def client_differences(one: Described, other: Described) -> list[str]:
    """Describe the differences that keep two clients of one encoder from being federated."""
    differences = [
        f"{name} ({getattr(one, name)} at {one.client}, {getattr(other, name)} at {other.client})"
        for name in ("dataset", "embed_dim", "logit_scale", "normalized")
        if getattr(one, name) != getattr(other, name)
    ]
    for name in ("class_names", "templates"):
        values: tuple[Sequence[str], Sequence[str]] = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            differences.append(f"{name} ({_only_in_one(one.client, other.client, *values)})")
    return differences


def _only_in_one(one: str, other: str, names: Sequence[str], others: Sequence[str]) -> str:
    """Describe which names only one of two clients has, or that only the order differs."""
    only = {one: sorted({*names} - {*others}), other: sorted({*others} - {*names})}
    sides = [
        f"only {client} has {', '.join(map(repr, own))}" for client, own in only.items() if own
    ]
    return ", ".join(sides) or f"{one} and {other} have the same in a different order"


def _close(texts: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> bool:
    """Return whether two sites' text features differ only by rounding on different devices."""
    return texts.shape == others.shape and bool(
        np.linalg.norm(texts - others) <= 0.01 * np.linalg.norm(others)
    )
