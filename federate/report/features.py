"""What a report shows of the features: a map of them, and what attention makes of them.

Importing this imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...cache import CacheFolder, FeatureCache, FedclipError, load_cache, resolve_cache
from ..runs.catalog import RecordedRun
from ..seeding import generator

logger = logging.getLogger(__name__)

# Images on the map, and images of a domain whose attention is averaged.
POINTS = 1500
ROWS = 1000

# Feature dimensions that are shown.
DIMENSIONS = 24

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureMap:
    """Images on the two principal components of their features.

    Attributes:
        points: Domain, class and place of each.
        shares: Of the variance, by component.
        rows: Number of images they are drawn from.
    """

    points: Sequence[tuple[str, str, float, float]]
    shares: tuple[float, float]
    rows: int

    @property
    def sampled(self) -> bool:
        """Whether they are some of the images."""
        return len(self.points) < self.rows


@dataclass(frozen=True)
class Turned:
    """Mean attention by domain and feature dimension.

    Attributes:
        cells: Domain, dimension, and the weight as a multiple of an equal share.
        dimensions: Number of dimensions, of which some are shown.
        of: Which adapter it is, if there are several, in words.
    """

    cells: Sequence[tuple[str, int, float]]
    dimensions: int
    of: str


def load_features(run: RecordedRun, cache_dir: Path | None) -> list[FeatureCache] | None:
    """Load the cache of a run; None if it is not there any more, or not the same.

    Args:
        run: Whose cache.
        cache_dir: Where it is looked for by its name; None for where it was.
    """
    cache = run.config.get("cache")
    if not isinstance(cache, dict):
        return None
    try:
        where = CacheFolder(Path(str(cache.get("folder"))))
        if cache_dir is not None:
            where = resolve_cache(cache_dir, str(cache.get("name")))
        clients = load_cache(where)
    except (FedclipError, OSError) as error:
        logger.debug("%s", error)
        return None
    return clients if clients[0].key == cache.get("key") else None


def map_features(clients: Sequence[FeatureCache]) -> FeatureMap:
    """Project the features, as directions, on their two principal components."""
    rows = [(c, row) for c, cache in enumerate(clients) for row in range(len(cache.labels))]
    random = generator("feature-map", len(rows))
    chosen = rows
    if len(rows) > POINTS:
        drawn = np.sort(random.choice(len(rows), POINTS, replace=False))
        chosen = [rows[index] for index in drawn]
    vectors = np.stack([clients[c].image_features[row] for c, row in chosen]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors -= vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(vectors, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2].sum(axis=1, keepdims=True))  # a component has no sign
    places = vectors @ axes.T
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    variances = np.append(np.square(sizes), [0.0, 0.0])
    total = variances.sum() or 1.0
    points = [
        (
            clients[c].client,
            clients[c].class_names[int(clients[c].labels[row])],
            round(float(x), 4),
            round(float(y), 4),
        )
        for (c, row), (x, y) in zip(chosen, places, strict=True)
    ]
    shares = (float(variances[0] / total), float(variances[1] / total))
    return FeatureMap(points, shares, len(rows))


def turned_by_attention(run: RecordedRun, clients: Sequence[FeatureCache]) -> Turned | None:
    """Average the attention of the paper's adapter over the images of each domain.

    Only the adapter `attention` weights image features by a softmax over dimensions, and only
    raw or rescaled features as they were trained on are what it takes.

    Returns:
        The dimensions that differ most from an equal share; None for any other adapter.
    """
    if run.settings.get("adapter") != "attention" or run.settings.get("strategy") == "local":
        return None
    part = run.parts[0]
    try:
        layers = load_file(part.path / "adapter.safetensors")
        first, second = (
            (layers[f"attention.{place}.weight"], layers[f"attention.{place}.bias"])
            for place in (0, 2)
        )
        weights = {
            cache.client: _attention(
                _inputs(cache, run.settings.get("feature_norm")), first, second
            )
            for cache in clients
        }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        logger.debug("%s: %s", part.path, error)
        return None
    table = np.stack([*weights.values()])
    distance = np.abs(np.log2(np.maximum(table, 1e-12))).max(axis=0)
    shown = np.sort(np.argsort(-distance, kind="stable")[:DIMENSIONS])
    shown = shown[np.argsort(-table[:, shown].mean(axis=0), kind="stable")]
    cells = [
        (client, int(dimension), max(float(row[dimension]), 1e-12))
        for client, row in weights.items()
        for dimension in shown
    ]
    target = getattr(part.result, "target", None)
    of = f", in the adapter with target {target}" if len(run.parts) > 1 else ""
    return Turned(cells, table.shape[1], of)


def _inputs(cache: FeatureCache, norm: object) -> Floats:
    features = cache.image_features[:ROWS].astype(np.float32)
    if isinstance(norm, int | float):
        features *= np.float32(norm) / np.linalg.norm(features, axis=1, keepdims=True)
    return features


def _attention(
    features: Floats, first: tuple[Floats, Floats], second: tuple[Floats, Floats]
) -> npt.NDArray[np.float64]:
    """Return the (D,) mean of ``D softmax(W2 tanh(W1 I + b1) + b2)`` over (n, D) features."""
    hidden = np.tanh(features @ first[0].T + first[1])
    logits = (hidden @ second[0].T + second[1]).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    mean: npt.NDArray[np.float64] = shares.mean(axis=0) * features.shape[1]
    return mean
