"""Caches to clients: which rows a client has, and how it splits them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...cache import FeatureCache, FedclipError
from ...cache.common.fields import listed
from ...cache.common.text import counted, nfc
from ...cache.compatibility import Described, check_comparable
from ...cache.schema import CLIP_SCALE, NO_SCALE
from ..models.base import Model
from ..seeding import generator
from ..settings import ALL_PROMPTS, MEANS, TEXT, Settings
from .samples import Domain, JoinedSamples, Rows, Samples

MIN_ROWS = 5
MIN_TRAIN = 2  # a batch of one sample has no negatives
TRAIN_SHARE = 0.6
VALIDATION_SHARE = 0.2

TOGETHER = "all-together"

# Federations that a pool keeps for the next run that draws the same.
FEDERATIONS_KEPT = 128

# Rows that are rescaled together: few enough to stay in a CPU's cache.
ROWS_AT_ONCE = 1024


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
        text: (C, D) float32 class vectors: those of the class texts, or what stands in for them.
        logit_scale: The factor on similarities.
        zero_shot: Whether `text` is of class texts, so that zero-shot accuracy is defined.
        dropped: Clients that the partition left with too few rows: name and rows.
    """

    participants: tuple[Client, ...]
    target: Client | None
    text: Tensor = field(repr=False)
    logit_scale: float
    zero_shot: bool = True
    dropped: tuple[tuple[str, int], ...] = ()

    @property
    def clients(self) -> tuple[Client, ...]:
        """Everyone who is tested: the participants, then the target."""
        return (*self.participants, *([self.target] if self.target else []))

    @cached_property
    def together(self) -> Client:
        """One client with all participants' training samples, and nothing else."""
        first, *_ = self.participants
        nothing = first.train.domain.view(np.arange(0))
        train = JoinedSamples.of([client.train for client in self.participants])
        return Client(TOGETHER, TOGETHER, train, nothing, nothing)

    @property
    def embed_dim(self) -> int:
        """Width of the features, D."""
        return int(self.text.shape[1])


class FeaturePool:
    """A cache's features on a device, once for all federations that are built of them.

    Clients of whichever number, seed, target or run are views into them.

    Args:
        caches: The domains.
        feature_norm: L2 norm that each row is rescaled to; None leaves them raw.
        device: Where they are used.
        in_place: Whether the caches' own arrays may be rescaled, to save a copy.
        model: What is trained, which decides what it takes for a row.

    Raises:
        FedclipError: a row of zeros cannot be rescaled.
    """

    def __init__(
        self,
        caches: Sequence[FeatureCache],
        feature_norm: float | None,
        device: torch.device,
        *,
        in_place: bool = False,
        model: Model | None = None,
    ) -> None:
        self.device = device
        self._made = lru_cache(FEDERATIONS_KEPT)(self._make)
        self.domains = tuple(
            self._domain(cache, _rescaled(cache, feature_norm, in_place=in_place), model)
            for cache in caches
        )

    def _domain(
        self, cache: FeatureCache, rows: npt.NDArray[np.float32], model: Model | None
    ) -> Domain:
        features = torch.from_numpy(rows).to(self.device)
        return Domain(
            cache,
            features,
            torch.from_numpy(cache.labels).to(self.device).long(),
            _order(cache.ids),
            features if model is None else model.inputs(cache, features),
        )

    def federation(self, settings: Settings, target: str | None) -> Federation:
        """Make the federation of a run's settings, or return it if it was made before.

        Raises:
            FedclipError: nobody left to train, a domain too small to split, a client with the
                target's name, or a template that is not cached.
        """
        drawn = Settings(
            partition=settings.partition,
            data_fraction=settings.data_fraction,
            prompts=settings.prompts,
            class_vectors=settings.class_vectors,
            logit_scale=settings.logit_scale,
            seed=settings.seed,
        )
        return self._made(drawn, target)

    def site(self, settings: Settings, *, target: bool, means: Tensor | None = None) -> Federation:
        """Make what one site sees of a federation: itself, a participant or the target.

        Its draws depend on the seed and its name, so its split is the one that it has in a
        federation of all.

        Args:
            settings: Those of the run.
            target: Whether the site is the target.
            means: (C, D) float32 class means of all sites, which take the place of class texts if
                the settings say so; zeros until they are known.

        Raises:
            FedclipError: it is too small to split, or a template is not cached.
        """
        (domain,) = self.domains

        def known() -> Tensor:
            shape = len(domain.cache.class_names), domain.cache.embed_dim
            return torch.zeros(shape) if means is None else means

        vectors = self._class_vectors(settings, known)
        if target:
            return Federation((), _target(domain), *vectors)
        ((name, rows),) = _deal(domain.name, domain.order, domain.cache.labels, settings)
        return Federation((_split_rows(name, domain, rows, settings),), None, *vectors)

    def _class_vectors(
        self, settings: Settings, means: Callable[[], Tensor]
    ) -> tuple[Tensor, float, bool]:
        """Return the (C, D) class vectors, the logit scale, and whether zero-shot is defined.

        Args:
            settings: Say what the vectors are.
            means: Returns the class means; a head starts at these.
        """
        first = self.domains[0].cache
        texts = class_vectors_of(first, settings) == TEXT
        vectors = torch.from_numpy(class_texts(first, settings.prompts)) if texts else means()
        return vectors.to(self.device), logit_scale_of(first, settings), texts

    def _make(self, settings: Settings, target: str | None) -> Federation:
        """Make every domain but `target` a participant, or split it into several.

        The draws depend on the seed and the client alone, so a client's split is the
        same whichever domain is the target.
        """
        participants: list[Client] = []
        dropped: list[tuple[str, int]] = []
        left_out: Client | None = None
        for domain in self.domains:
            if domain.name == target:
                left_out = _target(domain)
                continue
            for name, rows in _deal(domain.name, domain.order, domain.cache.labels, settings):
                if len(rows) < MIN_ROWS:
                    dropped.append((name, len(rows)))
                else:
                    participants.append(_split_rows(name, domain, rows, settings))
        clash = next((each.name for each in participants if each.name == target), None)
        if clash is not None:
            raise FedclipError(
                f"--target {clash}: --clients makes a client of the same name; choose another "
                "--target"
            )
        if not participants:
            raise FedclipError(
                f"no client is left to train with target {target or 'none'}"
                + (
                    f" and {counted(len(dropped), 'client')} under {MIN_ROWS} rows"
                    if dropped
                    else ""
                )
                + f"; choose {'another --target, or none' if target else 'fewer --clients'}"
            )
        names = self.domains[0].cache.class_names
        vectors = self._class_vectors(
            settings,
            lambda: class_means(
                [class_sums(client.train, len(names)) for client in participants], names
            ),
        )
        return Federation(tuple(participants), left_out, *vectors, dropped=tuple(dropped))


def build_federation(
    caches: Sequence[FeatureCache],
    settings: Settings,
    target: str | None,
    device: torch.device,
) -> Federation:
    """Make one federation of caches, which stay as they are.

    Raises:
        FedclipError: as `FeaturePool` and its `federation` do.
    """
    return FeaturePool(caches, settings.feature_norm, device).federation(settings, target)


def class_vectors_of(client: Described, settings: Settings) -> str:
    """Return what a client's samples are compared with: a value of `CLASS_VECTORS`."""
    return settings.class_vectors or (TEXT if client.templates else MEANS)


def check_class_vectors(cache: FeatureCache, settings: Settings) -> None:
    """Check that a client has the class texts that are asked for, and uses those that are chosen.

    Raises:
        FedclipError: it has none, lacks a template, or a template is chosen where classes have
            no texts.
    """
    kind = class_vectors_of(cache, settings)
    if kind == TEXT:
        check_comparable(cache)
        chosen_templates(cache, settings.prompts)
    elif settings.prompts:
        reason = f"with --class-vectors {kind}" if cache.templates else "without class texts"
        raise FedclipError(
            f"--prompt {settings.prompts[0]!r}: has no effect {reason}; leave out --prompt"
            + (
                ""
                if cache.templates
                else ", or extract the dataset with a model that encodes texts too, such as CLIP"
            )
        )


def logit_scale_of(client: Described, settings: Settings) -> float:
    """Return the factor on similarities: the settings', the encoder's, or CLIP's if it has none."""
    if settings.logit_scale is not None:
        return settings.logit_scale
    return CLIP_SCALE if client.logit_scale == NO_SCALE else client.logit_scale


def class_means(sent: Sequence[tuple[Tensor, Tensor]], class_names: Sequence[str]) -> Tensor:
    """Return each class's mean over clients' training features, (C, D) float32.

    A client sends the sum and the number of its samples of each class, and nothing of any one
    sample unless it is the only one of its class (Tan et al. 2022, FedProto, arXiv:2105.00243,
    equation 6).

    Args:
        sent: What `class_sums` returned at each client.
        class_names: C names.

    Raises:
        FedclipError: no client has a training sample of a class.
    """
    sums, counts = zip(*sent, strict=True)
    total, count = torch.stack(sums).sum(dim=0), torch.stack(counts).sum(dim=0)
    missing = [name for name, number in zip(class_names, count.tolist(), strict=True) if not number]
    if missing:
        raise FedclipError(
            f"--class-vectors: no client has a training sample of {listed(missing, 'and')}, so "
            "none has a mean; choose another --target, or remove the class"
        )
    return (total / count[:, None]).float()


def class_sums(part: Samples, classes: int) -> tuple[Tensor, Tensor]:
    """Return what a client sends for class means.

    Each feature is normalized first, so that all samples count alike.

    Returns:
        (C, D) float64 sums of its normalized training features by class, and (C,) int64 counts.
    """
    features, labels = part.features.double(), part.labels
    features = functional.normalize(features, dim=1)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
    return sums, torch.bincount(labels, minlength=classes)


def chosen_templates(client: Described, prompts: Sequence[str]) -> tuple[str, ...]:
    """Return the templates of the class texts: those given, all, or the first cached.

    Raises:
        FedclipError: a template is not in the cache.
    """
    if list(prompts) == [ALL_PROMPTS]:
        return client.templates
    prompts = tuple(map(nfc, prompts))
    for template in prompts:
        if template not in client.templates:
            raise FedclipError(
                f"--prompt {template!r}: is not cached; choose "
                f"{listed([*map(repr, client.templates), ALL_PROMPTS])}, or add it with "
                "fedclip extract --template"
            )
    return prompts or client.templates[:1]


def class_texts(cache: FeatureCache, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the class texts, (C, D) float32: of one template, or the mean of several or `all`.

    Of several templates the vectors are normalized before they are averaged
    (Radford et al. 2021, section 3.1.4).

    Raises:
        FedclipError: the images cannot be compared with texts, or a template is not in the cache.
    """
    check_comparable(cache)
    columns = [cache.templates.index(each) for each in chosen_templates(cache, prompts)]
    texts = cache.text_features[:, columns]
    if len(prompts) < 2 and list(prompts) != [ALL_PROMPTS]:
        return np.ascontiguousarray(texts[:, 0])
    texts = texts / np.linalg.norm(texts, axis=2, keepdims=True)
    return np.ascontiguousarray(texts.mean(axis=1))


def test_rows(
    domain: str,
    ids: Sequence[str],
    labels: npt.NDArray[np.int32],
    settings: Settings,
    target: str | None,
) -> dict[str, Rows]:
    """Return the rows of a domain that each of its clients is tested on.

    Args:
        domain: Its name.
        ids: N ids.
        labels: (N,) classes.
        settings: Those that the federation is made by.
        target: The domain left out.
    """
    if domain == target:
        return {domain: np.arange(len(ids))}
    return {
        name: _parts(name, rows, settings.seed)[2]
        for name, rows in _deal(domain, _order(ids), labels, settings)
        if len(rows) >= MIN_ROWS
    }


def _order(ids: Sequence[str]) -> Rows:
    return np.argsort(np.array(ids, dtype=object), kind="stable")


def _deal(
    domain: str, order: Rows, labels: npt.NDArray[np.int32], settings: Settings
) -> list[tuple[str, Rows]]:
    """Return the clients of a domain with their rows, in the order of the ids."""
    partition = settings.partition
    if len(order) < MIN_ROWS:
        raise FedclipError(
            f"{domain}: has {counted(len(order), 'row')}, too few to split into train, "
            f"validation and test; at least {MIN_ROWS} are needed"
        )
    if partition is None:
        return [(domain, order)]
    if partition.clients > len(order):
        raise FedclipError(
            f"{domain}: has {counted(len(order), 'row')}, too few for "
            f"{counted(partition.clients, 'client')}; choose fewer --clients"
        )
    random = generator("partition", settings.seed, domain)
    parts = partition.split(labels[order], random)
    return [(f"{domain}-{index:03d}", order[part]) for index, part in enumerate(parts)]


def _split_rows(name: str, domain: Domain, rows: Rows, settings: Settings) -> Client:
    """Split a client's rows, given in the order of their ids, 60/20/20 by a seeded shuffle.

    Of the training part the first rows are kept, so that a smaller share is part of a larger.
    """
    parts = _parts(name, rows, settings.seed)
    parts[0] = parts[0][: max(MIN_TRAIN, round(settings.data_fraction * len(parts[0])))]
    return Client(name, domain.name, *(domain.view(part) for part in parts))


def _parts(name: str, rows: Rows, seed: int) -> list[Rows]:
    """Shuffle a client's rows, and split them into training, validation and test part."""
    shuffled = rows[generator("split", seed, name).permutation(len(rows))]
    train = math.floor(TRAIN_SHARE * len(rows))
    validation = math.floor(VALIDATION_SHARE * len(rows))
    return np.split(shuffled, [train, train + validation])


def _target(domain: Domain) -> Client:
    """Make a target: tested whole, in the order of its rows."""
    nothing = domain.view(np.arange(0))
    return Client(
        domain.name, domain.name, nothing, nothing, domain.view(np.arange(len(domain.order)))
    )


def _rescaled(
    cache: FeatureCache, norm: float | None, *, in_place: bool
) -> npt.NDArray[np.float32]:
    """Return a cache's features, rescaled row by row to `norm` unless that is None."""
    features = cache.image_features
    if norm is None:
        return features
    scaled = features if in_place else np.empty_like(features)
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = features[start : start + ROWS_AT_ONCE]
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        if not norms.all():
            row = start + int(np.flatnonzero(norms == 0)[0])
            raise FedclipError(
                f"{cache.client}: row {row} ({cache.ids[row]}) is all zeros and cannot be "
                "rescaled; leave --feature-norm raw, or extract it again"
            )
        np.multiply(block, np.float32(norm) / norms, out=scaled[start : start + ROWS_AT_ONCE])
    return scaled
