"""Predictions as rows: written as they come, and counted where the class is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO, overload

import numpy as np

from ...cache import FeatureCache, FedclipError
from ...cache.common.extras import data_frame
from ...cache.common.tables import MISSING, Cell, Column, Table, percent
from ...cache.key import differing_facts
from ...cache.schema import content_sha256
from ..models.classifier import Classifier, Scores
from ..runs.saved import tested_rows
from .cells import Accuracy

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "json", "csv")

# What a row of each format has, in this order.
COLUMNS = ("image", "rank", "class", "probability", "zero_shot", "zero_shot_probability", "label")

# Rows of a cache that are classified together, as many as federate evaluates together.
ROWS_AT_ONCE = 1024

# Width of the columns of probabilities.
_PERCENT = 7


@dataclass(frozen=True)
class Prediction:
    """One class that an image may have; rank 1 is the most probable.

    Attributes:
        image: The image's name.
        rank: Counted from 1.
        name: The class of this rank according to the adapter.
        probability: Its probability.
        zero_shot: The class of this rank without an adapter.
        zero_shot_probability: Its probability without an adapter.
        label: The image's own class; None if it is not known.
    """

    image: str
    rank: int
    name: str
    probability: float
    zero_shot: str
    zero_shot_probability: float
    label: str | None

    def row(self) -> dict[str, Any]:
        """Return the values by column."""
        values = (
            *(self.image, self.rank, self.name, self.probability),
            *(self.zero_shot, self.zero_shot_probability, self.label),
        )
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class Scored:
    """B classified images.

    Attributes:
        scores: What the classifier makes of them.
        images: Their names.
        ids: Their ids within their domains.
        labels: Their own classes; None where unknown.
        domains: Their domains; None where unknown.
        digests: Content hash of each.
    """

    scores: Scores
    images: Sequence[str]
    ids: Sequence[str]
    labels: Sequence[str | None]
    domains: Sequence[str | None]
    digests: Sequence[bytes]


def score_cache(classifier: Classifier, caches: Sequence[FeatureCache]) -> Iterator[Scored]:
    """Classify cached features, which takes no encoder.

    Raises:
        FedclipError: they come from another encoder than the adapter's.
    """
    for cache in caches:
        if cache.key != classifier.key:
            differing = ", ".join(differing_facts(classifier.encoder, cache.encoder))
            raise FedclipError(
                f"{cache.client}: its features come from another encoder than the adapter's "
                f"({differing} differ); choose the cache that it was trained on"
            )
        for start in range(0, len(cache.labels), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            ids = cache.ids[rows]
            yield Scored(
                classifier(cache.image_features[rows]),
                ids,
                ids,
                [cache.class_names[label] for label in cache.labels[rows]],
                [cache.client] * len(ids),
                [digest.tobytes() for digest in cache.digests[rows]],
            )


def predictions(scored: Scored, class_names: Sequence[str], top_k: int = 1) -> Iterator[Prediction]:
    """List the `top_k` classes of each image, or all if there are fewer."""
    adapted, zero_shot = scored.scores.top(top_k)
    ranked = [
        each.tolist()
        for each in (
            *(adapted.classes, adapted.probabilities),
            *(zero_shot.classes, zero_shot.probabilities),
        )
    ]
    for image, label, *of_image in zip(scored.images, scored.labels, *ranked, strict=True):
        for rank, (one, p, other, q) in enumerate(zip(*of_image, strict=True), start=1):
            yield Prediction(image, rank, class_names[one], p, class_names[other], q, label)


Write = Callable[[Prediction], None]


def make_writer(name: str, stream: TextIO, class_names: Sequence[str]) -> Write:
    """Return the function that writes a prediction in one of `FORMATS`."""
    if name == "json":
        return lambda each: print(json.dumps(each.row(), ensure_ascii=False), file=stream)
    if name == "csv":
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        return lambda each: table.writerow(each.row())
    width = max(len("zero-shot"), *map(len, class_names))

    def line(name: str, probability: str, zero_shot: str, other: str, image: str) -> None:
        print(
            f"{name:<{width}} {probability:>{_PERCENT}}  {zero_shot:<{width}} {other:>{_PERCENT}}"
            f"  {image}",
            file=stream,
        )

    line("class", "%", "zero-shot", "%", "image")
    return lambda each: line(
        each.name,
        f"{100 * each.probability:.2f}",
        each.zero_shot,
        f"{100 * each.zero_shot_probability:.2f}",
        each.image if each.rank == 1 else "",
    )


class Predictions(Sequence[Prediction]):
    """Predictions in memory, in the order of the images; `top_k` for each image.

    Attributes:
        skipped: Images that could not be classified, by name, and why.
    """

    def __init__(self, classifier: Classifier, top_k: int = 1) -> None:
        self.skipped: dict[str, str] = {}
        self._classifier = classifier
        self._top_k = top_k
        self._rows: list[Prediction] = []
        self._tally = Tally(classifier)

    def add(self, scored: Scored) -> None:
        """Add classified images."""
        self._rows += predictions(scored, self._classifier.class_names, self._top_k)
        self._tally.add(scored)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, which: int) -> Prediction: ...

    @overload
    def __getitem__(self, which: slice) -> list[Prediction]: ...

    def __getitem__(self, which: int | slice) -> Prediction | list[Prediction]:
        return self._rows[which]

    @property
    def accuracies(self) -> dict[str, Share]:
        """Accuracy on the images whose class is known, by domain; "" for those without one."""
        return self._tally.accuracies()

    @property
    def tested(self) -> dict[str, Share]:
        """Accuracy by client on the images that the run tested it on, if all of them are here."""
        return self._tally.tested()

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each class of each image.

        Raises:
            FedclipError: pandas is not installed.
        """
        return data_frame([each.row() for each in self._rows], COLUMNS)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"<{len(self._rows) // max(1, self._top_k)} images classified{skipped}>"


@dataclass
class _Domain:
    """What is kept of a domain's images: enough to compare them with the run's."""

    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    adapted: list[bool] = field(default_factory=list)
    zero_shot: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """How often some images' own class was predicted.

    Attributes:
        images: Number of images.
        zero_shot: Share of them that is right without an adapter.
        adapted: Share of them that is right with it.
    """

    images: int
    zero_shot: float
    adapted: float


class Tally:
    """Counts right predictions of images whose class is known, domain by domain.

    Args:
        classifier: What predicts.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._facts = classifier.facts
        self._index = {name: label for label, name in enumerate(classifier.class_names)}
        self._domains: dict[str, _Domain] = {}

    def add(self, scored: Scored) -> None:
        """Count images; those without a known class are left out."""
        best = [
            logits.argmax(dim=1).tolist()
            for logits in (scored.scores.adapted, scored.scores.zero_shot)
        ]
        of_each = scored.domains, scored.ids, scored.labels, scored.digests
        rows = zip(*of_each, *best, strict=True)
        for domain, image_id, label, digest, adapted, zero_shot in rows:
            known = self._index.get(label) if label is not None else None
            if known is None:
                continue
            mine = self._domains.setdefault(domain or "", _Domain())
            mine.ids.append(image_id)
            mine.labels.append(known)
            mine.digests.append(digest)
            mine.adapted.append(adapted == known)
            mine.zero_shot.append(zero_shot == known)

    def accuracies(self) -> dict[str, Share]:
        """Return the accuracy on all images of each domain; "" for those without a domain."""
        return {
            name: _accuracy(mine, np.arange(len(mine.ids)))
            for name, mine in sorted(self._domains.items())
        }

    def tested(self) -> dict[str, Share]:
        """Return the accuracy of each client on the images that the run tested it on.

        Only domains that are the run's to the last image have such clients.
        """
        found: dict[str, Share] = {}
        for name, mine in sorted(self._domains.items()):
            order = sorted(range(len(mine.ids)), key=mine.ids.__getitem__)
            ids = tuple(mine.ids[row] for row in order)
            labels = np.array([mine.labels[row] for row in order], np.int32)
            digests = b"".join(mine.digests[row] for row in order)
            content = content_sha256(name, tuple(self._index), ids, labels, digests)
            tested = tested_rows(self._facts, name, content, ids, labels)
            for client, rows in tested.items():
                found[client] = _accuracy(mine, np.array(order)[rows])
        return found


def _accuracy(domain: _Domain, rows: Any) -> Share:
    right = [
        sum(hits[row] for row in rows) / len(rows) for hits in (domain.zero_shot, domain.adapted)
    ]
    return Share(len(rows), *right)


def accuracy_table(tally: Tally) -> Table | None:
    """Lay out the accuracies, zero-shot beside adapted in percent; None of no known classes."""
    everything, tested = tally.accuracies(), tally.tested()
    if not everything:
        return None
    columns = [
        Column("client"),
        Column("images"),
        Column("all images", show=percent),
        *([Column("tested"), Column("test part of the run", show=percent)] if tested else []),
    ]
    parts = (everything, tested) if tested else (everything,)
    rows = [
        (name or MISSING, *(cell for part in parts for cell in _cells(part.get(name))))
        for name in sorted({*everything, *tested})
    ]
    return Table(columns, rows, caption="accuracy in %, zero-shot > adapted")


def _cells(share: Share | None) -> tuple[Cell, Cell]:
    return (share.images, Accuracy(share.zero_shot, share.adapted)) if share else (None, None)
