"""Caches to clients: which rows a client has, and how it splits them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import FeatureCache, FedclipError
from .seeding import generator
from .settings import Settings

MIN_ROWS = 5
TRAIN_SHARE = 0.6
VALIDATION_SHARE = 0.2

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of a client: (N, D) float32 features and (N,) int64 labels, on one device."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Client:
    """A participant, or the target, whose train and validation parts are empty."""

    name: str
    domain: str
    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True, eq=False)
class Federation:
    """Who takes part, and what they share.

    Attributes:
        participants: The clients that train, in alphabetical order.
        target: The domain left out, tested whole; None if none is.
        text: (C, D) float32 class texts.
        logit_scale: The encoder's ``exp(logit_scale)``.
        dropped: Clients that a Dirichlet draw left with too few rows: name and rows.
    """

    participants: tuple[Client, ...]
    target: Client | None
    text: Tensor
    logit_scale: float
    dropped: tuple[tuple[str, int], ...] = ()

    @property
    def clients(self) -> tuple[Client, ...]:
        """Everyone who is tested: the participants, then the target."""
        return (*self.participants, *([self.target] if self.target else []))

    @property
    def embed_dim(self) -> int:
        """Width of the features, D."""
        return int(self.text.shape[1])


def build_federation(
    caches: Sequence[FeatureCache],
    settings: Settings,
    target: str | None,
    device: torch.device,
) -> Federation:
    """Make every domain but `target` a participant, or `settings.clients` of them.

    The draws depend on the seed and the client alone, so a client's split is the
    same whichever domain is the target.

    Raises:
        FedclipError: no such target, nobody left to train, a domain too small to split,
            a template that is not cached, or a zero row that cannot be rescaled.
    """
    domains = [cache.client for cache in caches]
    if target is not None and target not in domains:
        raise FedclipError(
            f"there is no target {target!r} in this cache; "
            f"its domains are {', '.join(domains)} (or all, or none)"
        )
    participants: list[Client] = []
    dropped: list[tuple[str, int]] = []
    left_out: Client | None = None
    for cache in caches:
        whole = _samples(cache, settings, device)
        if cache.client == target:
            nothing = _take(whole, np.arange(0))
            left_out = Client(cache.client, cache.client, nothing, nothing, whole)
            continue
        for name, rows in _deal(cache, settings):
            if len(rows) < MIN_ROWS:
                dropped.append((name, len(rows)))
            else:
                participants.append(_split(name, cache.client, whole, rows, settings.seed))
    if not participants:
        raise FedclipError(
            f"no client is left to train with target {target or 'none'}"
            + (f" and {len(dropped)} clients under {MIN_ROWS} rows" if dropped else "")
            + "; choose --target none, or fewer --clients"
        )
    return Federation(
        participants=tuple(participants),
        target=left_out,
        text=torch.from_numpy(class_texts(caches[0], settings.prompts)).to(device),
        logit_scale=caches[0].logit_scale,
        dropped=tuple(dropped),
    )


def class_texts(cache: FeatureCache, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Pick the class texts, (C, D) float32: one template's, or the mean of several.

    Of several templates the vectors are normalised before they are averaged
    (Radford et al. 2021, section 3.1.4).

    Raises:
        FedclipError: a template is not in the cache.
    """
    for template in prompts:
        if template not in cache.templates:
            raise FedclipError(
                f"prompt {template!r} is not cached; there is "
                f"{', '.join(map(repr, cache.templates))}, and extract --template adds more"
            )
    if len(prompts) < 2:
        column = cache.templates.index(prompts[0]) if prompts else 0
        return np.ascontiguousarray(cache.text_features[:, column])
    columns = [cache.templates.index(template) for template in prompts]
    texts = cache.text_features[:, columns]
    texts = texts / np.linalg.norm(texts, axis=2, keepdims=True)
    return np.ascontiguousarray(texts.mean(axis=1))


def partition(
    labels: npt.NDArray[np.int32], clients: int, alpha: float, seed: int, domain: str
) -> list[Rows]:
    """Deal a domain's rows to clients, class by class, by a Dirichlet draw.

    Each class's rows, shuffled, are cut in proportions drawn from Dirichlet(alpha)
    (Hsu et al. 2019, arXiv:1909.06335, dealt by class). Every row goes to one client.

    Args:
        labels: (N,) the rows' classes.
        clients: Number of clients K.
        alpha: Concentration; small is uneven, large is even.
        seed: The run's seed.
        domain: The domain's name.

    Returns:
        K arrays of row indices, each in ascending order.
    """
    random = generator("partition", seed, domain)
    hands: list[list[Rows]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(clients, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
        for hand, dealt in zip(hands, np.split(rows, cuts), strict=True):
            hand.append(dealt)
    return [np.sort(np.concatenate(hand)) for hand in hands]


def _deal(cache: FeatureCache, settings: Settings) -> list[tuple[str, Rows]]:
    if len(cache.labels) < MIN_ROWS:
        raise FedclipError(
            f"{cache.client}: has {len(cache.labels)} rows, too few to split into train, "
            f"validation and test; at least {MIN_ROWS} are needed"
        )
    order = np.argsort(np.array(cache.ids, dtype=object), kind="stable")
    if settings.clients is None:
        return [(cache.client, order)]
    hands = partition(
        cache.labels[order],
        settings.clients,
        settings.alpha,
        settings.seed,
        cache.client,
    )
    return [(f"{cache.client}-{index:03d}", order[hand]) for index, hand in enumerate(hands)]


def _split(name: str, domain: str, whole: Samples, rows: Rows, seed: int) -> Client:
    """Split a client's rows, given in the order of their ids, 60/20/20 by a seeded shuffle."""
    shuffled = rows[generator("split", seed, name).permutation(len(rows))]
    train = math.floor(TRAIN_SHARE * len(rows))
    validation = math.floor(VALIDATION_SHARE * len(rows))
    parts = np.split(shuffled, [train, train + validation])
    return Client(name, domain, *(_take(whole, part) for part in parts))


def _take(samples: Samples, rows: Rows) -> Samples:
    index = torch.from_numpy(np.ascontiguousarray(rows)).to(samples.labels.device)
    return Samples(samples.features[index], samples.labels[index])


def _samples(cache: FeatureCache, settings: Settings, device: torch.device) -> Samples:
    features = cache.image_features
    if settings.feature_norm is not None:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        if not norms.all():
            row = int(np.flatnonzero(norms == 0)[0])
            raise FedclipError(
                f"{cache.client}: row {row} ({cache.ids[row]}) is all zeros and cannot be "
                "rescaled; leave --feature-norm raw, or extract it again"
            )
        features = features * (np.float32(settings.feature_norm) / norms)
    return Samples(
        torch.from_numpy(features).to(device),
        torch.from_numpy(cache.labels).long().to(device),
    )
