"""Predictions as rows: written as they come, and counted where the class is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TextIO, overload

import numpy as np

from ...cache import FeatureCache, FedclipError
from ...cache.common.extras import data_frame
from ...cache.common.tables import MISSING, Cell, Column, Table, percent
from ...cache.common.text import counted, printable
from ...cache.key import differing_facts
from ...cache.schema import content_sha256
from ..models.classifier import Classifier, Scores
from ..runs.saved import tested_rows
from ..training.metrics import Predicted, Tally
from .cells import Accuracy

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "json", "csv")

# What a row has after the sample, in this order.
COLUMNS = ("rank", "class", "probability", "zero_shot", "zero_shot_probability", "label")

# Rows of a cache that are classified together, as many as federate evaluates together.
ROWS_AT_ONCE = 1024

# Width of the columns of probabilities, and of the longest text, in a table for people.
_PERCENT = 7
_TEXT = 80


@dataclass(frozen=True)
class Prediction:
    """One class that a sample may have; rank 1 is the most probable.

    Attributes:
        image: The image's name, or the text.
        rank: Counted from 1.
        name: The class of this rank according to the adapter.
        probability: Its probability.
        zero_shot: The class of this rank without an adapter; None if zero-shot is not defined.
        zero_shot_probability: Its probability without an adapter; None if that is not defined.
        label: The sample's own class; None if it is not known.
    """

    image: str
    rank: int
    name: str
    probability: float
    zero_shot: str | None
    zero_shot_probability: float | None
    label: str | None

    def row(self, sample: str = "image") -> dict[str, Any]:
        """Return the values by column, the first of which is `sample`."""
        values = (
            *(self.rank, self.name, self.probability),
            *(self.zero_shot, self.zero_shot_probability, self.label),
        )
        return {sample: self.image, **dict(zip(COLUMNS, values, strict=True))}


@dataclass(frozen=True)
class Scored:
    """B classified samples.

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
    """List the `top_k` classes of each sample, or all if there are fewer."""
    samples = zip(scored.images, scored.labels, strict=True)
    for (image, label), adapted, zero_shot in zip(samples, *_ranked(scored, top_k), strict=True):
        for rank, (ours, theirs) in enumerate(zip(adapted, zero_shot, strict=True), start=1):
            before, q = (class_names[theirs[0]], theirs[1]) if theirs else (None, None)
            yield Prediction(image, rank, class_names[ours[0]], ours[1], before, q, label)


# A class as an index, and its probability.
_Ranked = tuple[int, float]


def _ranked(
    scored: Scored, k: int
) -> tuple[Sequence[Sequence[_Ranked]], Sequence[Sequence[_Ranked | None]]]:
    """Return the best classes of each sample, adapted and zero-shot, best first."""
    adapted, zero_shot = scored.scores.top(k)
    rows = adapted.rows()
    return rows, zero_shot.rows() if zero_shot else [[None] * len(row) for row in rows]


Write = Callable[[Prediction], None]


def make_writer(
    name: str, stream: TextIO, class_names: Sequence[str], sample: str = "image"
) -> Write:
    """Return the function that writes a prediction in one of `FORMATS`.

    Args:
        name: The format.
        stream: Where it is written.
        class_names: The classes.
        sample: What is classified, the name of the first column: ``image`` or ``text``.
    """
    if name == "json":
        return lambda each: print(json.dumps(each.row(sample), ensure_ascii=False), file=stream)
    if name == "csv":
        table = csv.DictWriter(stream, (sample, *COLUMNS), lineterminator="\n")
        table.writeheader()
        return lambda each: table.writerow(each.row(sample))
    width = max(len("zero-shot"), *map(len, class_names))

    def line(name: str, probability: str, zero_shot: str, other: str, shown: str) -> None:
        print(
            f"{name:<{width}} {probability:>{_PERCENT}}  {zero_shot:<{width}} {other:>{_PERCENT}}"
            f"  {shown}",
            file=stream,
        )

    line("class", "%", "zero-shot", "%", sample)
    return lambda each: line(
        each.name,
        percent(each.probability),
        each.zero_shot or MISSING,
        MISSING if each.zero_shot_probability is None else percent(each.zero_shot_probability),
        _shown(each.image, sample) if each.rank == 1 else "",
    )


def _shown(name: str, sample: str) -> str:
    """Put a sample's name on one line, and shorten it if it is a text."""
    if sample == "text":
        name = shorten(name, _TEXT, placeholder=" ...")
    return printable(name)


class Predictions(Sequence[Prediction]):
    """Predictions in memory, in the order of the samples; `top_k` for each.

    Attributes:
        skipped: Samples that could not be classified, by name, and why.

    Raises:
        FedclipError: on construction, if `top_k` is less than 1.
    """

    def __init__(self, classifier: Classifier, top_k: int = 1, sample: str = "image") -> None:
        if top_k < 1:
            raise FedclipError(f"top_k {top_k}: must be at least 1")
        self.skipped: dict[str, str] = {}
        self._classifier = classifier
        self._top_k = top_k
        self._sample = sample
        self._rows: list[Prediction] = []
        self._tallies = DomainTallies(classifier)

    def add(self, scored: Scored) -> None:
        """Add classified samples."""
        self._rows += predictions(scored, self._classifier.class_names, self._top_k)
        self._tallies.add(scored)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, which: int) -> Prediction: ...

    @overload
    def __getitem__(self, which: slice) -> list[Prediction]: ...

    def __getitem__(self, which: int | slice) -> Prediction | list[Prediction]:
        return self._rows[which]

    @property
    def measured(self) -> dict[str, Measured]:
        """By domain, the samples whose class is known; "" for those without a domain."""
        return self._tallies.all()

    @property
    def tested(self) -> dict[str, Measured]:
        """By client, the samples that the run tested it on, if all of its domain are here."""
        return self._tallies.tested()

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each class of each sample.

        Raises:
            FedclipError: pandas is not installed.
        """
        rows = [each.row(self._sample) for each in self._rows]
        return data_frame(rows, (self._sample, *COLUMNS))

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        per_sample = min(self._top_k, len(self._classifier.class_names))
        count = len(self._rows) // per_sample
        return f"<{counted(count, self._sample)} classified{skipped}>"


@dataclass
class _Domain:
    """What is kept of a domain's samples: enough to compare them with the run's."""

    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    adapted: list[_Ranked] = field(default_factory=list)
    zero_shot: list[_Ranked] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """How good predictions are for some samples whose class is known.

    Attributes:
        adapted: Those of the trained adapter, counted.
        zero_shot: Those without an adapter, counted; None if zero-shot is not defined.
    """

    adapted: Tally
    zero_shot: Tally | None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.adapted.samples

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The number of samples and both accuracies, as a table has them."""
        before = None if self.zero_shot is None else self.zero_shot.accuracy
        return self.samples, Accuracy(before, self.adapted.accuracy)


class DomainTallies:
    """Counts the predictions for samples whose class is known, domain by domain.

    Args:
        classifier: What predicts.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._facts = classifier.facts
        self._index = {name: label for label, name in enumerate(classifier.class_names)}
        self._domains: dict[str, _Domain] = {}

    def add(self, scored: Scored) -> None:
        """Count samples; those without a known class are left out."""
        if self._index.keys().isdisjoint(scored.labels):
            return
        samples = zip(scored.domains, scored.ids, scored.labels, scored.digests, strict=True)
        for sample, (adapted,), (zero_shot,) in zip(samples, *_ranked(scored, 1), strict=True):
            domain, sample_id, label, digest = sample
            known = self._index.get(label) if label is not None else None
            if known is None:
                continue
            mine = self._domains.setdefault(domain or "", _Domain())
            mine.ids.append(sample_id)
            mine.labels.append(known)
            mine.digests.append(digest)
            mine.adapted.append(adapted)
            if zero_shot is not None:
                mine.zero_shot.append(zero_shot)

    def all(self) -> dict[str, Measured]:
        """Measure all samples of each domain; "" is the name of those without a domain."""
        return {
            name: self._measured(mine, range(len(mine.ids)))
            for name, mine in sorted(self._domains.items())
        }

    def tested(self) -> dict[str, Measured]:
        """Measure the samples of each client that the run tested it on.

        Only domains that are the run's to the last sample have such clients.
        """
        found: dict[str, Measured] = {}
        for name, mine in sorted(self._domains.items()):
            order = sorted(range(len(mine.ids)), key=mine.ids.__getitem__)
            ids = tuple(mine.ids[row] for row in order)
            labels = np.array([mine.labels[row] for row in order], np.int32)
            digests = b"".join(mine.digests[row] for row in order)
            # A list or folder without domains may be the whole of one.
            for domain in [name] if name else self._facts["split"].get("domains", ()):
                content = content_sha256(domain, tuple(self._index), ids, labels, digests)
                tested = tested_rows(self._facts, domain, content, ids, labels)
                for client, rows in tested.items():
                    found[client] = self._measured(mine, [order[row] for row in rows])
        return found

    def _measured(self, domain: _Domain, rows: Sequence[int]) -> Measured:
        labels = np.array([domain.labels[row] for row in rows], np.int64)

        def tally(predicted: list[_Ranked]) -> Tally:
            classes, confidence = zip(*(predicted[row] for row in rows), strict=True)
            return Tally.of(
                Predicted(labels, np.array(classes, np.int64), np.array(confidence, np.float32)),
                len(self._index),
            )

        return Measured(
            tally(domain.adapted), tally(domain.zero_shot) if domain.zero_shot else None
        )


def accuracy_table(tallies: DomainTallies, samples: str = "images") -> Table | None:
    """Lay out the accuracies, zero-shot beside adapted in percent; None of no known classes."""
    everything, tested = tallies.all(), tallies.tested()
    if not everything:
        return None
    columns = [
        Column("client"),
        Column(samples),
        Column(f"all {samples}", show=percent),
        *([Column("tested"), Column("test part of the run", show=percent)] if tested else []),
    ]
    parts = (everything, tested) if tested else (everything,)
    rows = [
        (
            name or MISSING,
            *(cell for part in parts for cell in (part[name].cells if name in part else _NOTHING)),
        )
        for name in sorted({*everything, *tested})
    ]
    return Table(columns, rows, caption="accuracy in %, zero-shot > adapted")


_NOTHING: tuple[Cell, Cell] = (None, None)
