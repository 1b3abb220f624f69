"""How good predictions are: accuracy, balanced accuracy, F1, calibration, AUC.

Everything but the AUC follows from counts that can be added over clients, so a client can count
its own predictions and send the counts, and no prediction of an image leaves it.

Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

# Bins of equal width between confidence 0 and 1 (Guo et al. 2017, section 2).
BINS = 15

_EDGES = np.linspace(0, 1, BINS + 1)[1:-1]

# The figures of `Tally.figures`, in the order in which they are shown.
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error", "auc")

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """What is known of the predictions for a client's samples after every evaluation."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float

    @classmethod
    def of(cls, confusion: Integers) -> Self:
        """Take them from a (C, C) confusion matrix."""
        tally = Tally(confusion, np.zeros((BINS, 3)))
        return cls(tally.accuracy, tally.balanced_accuracy, tally.macro_f1)


class Predicted(NamedTuple):
    """What a model predicts for n samples.

    Attributes:
        labels: (n,) int64, the right classes.
        classes: (n,) int64, those with the highest logit.
        confidence: (n,) float32, their probability: the highest of the softmax.
    """

    labels: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the right class is predicted."""
        right: npt.NDArray[np.bool_] = self.labels == self.classes
        return right


@dataclass(frozen=True, eq=False)
class Tally:
    """Predictions counted.

    Attributes:
        confusion: (C, C) int64, samples by right class (row) and predicted class (column).
        bins: (15, 3) float64: number of samples, of right ones, and sum of the confidence, by
            confidence; bin m is ((m - 1) / 15, m / 15].
        auc: Area under the ROC curve where there are two classes and samples of both; None
            otherwise, and of tallies that were added.
    """

    confusion: Integers
    bins: Floats
    auc: float | None = None

    @classmethod
    def of(cls, predicted: Predicted, classes: int) -> Self:
        """Count predictions.

        Args:
            predicted: Of n samples.
            classes: Number of classes, C.
        """
        pairs = predicted.labels * classes + predicted.classes
        confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
        confidence = predicted.confidence.astype(np.float64)
        which = np.searchsorted(_EDGES, confidence)
        bins = [
            np.bincount(which, weights, minlength=BINS)
            for weights in (None, predicted.right.astype(np.float64), confidence)
        ]
        auc = _auc(predicted) if classes == 2 else None
        return cls(confusion.astype(np.int64), np.stack(bins, axis=1).astype(np.float64), auc)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.confusion + other.confusion, self.bins + other.bins)

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of samples whose own class is predicted; NaN without samples."""
        return _share(float(np.trace(self.confusion)), self.samples)

    @property
    def recall(self) -> Floats:
        """(C,) share of each class's samples that are predicted as it; NaN without samples."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have samples (Brodersen et al. 2010); NaN without."""
        recall = self.recall[self.confusion.sum(axis=1) > 0]
        return float(recall.mean()) if len(recall) else float("nan")

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have samples or predictions; NaN without samples.

        F1 is ``2 TP / (2 TP + FP + FN)``, the harmonic mean of precision and recall.
        """
        rows, columns = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        there = rows + columns > 0
        scores = 2 * self.confusion.diagonal()[there] / (rows + columns)[there]
        return float(scores.mean()) if len(scores) else float("nan")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, equation 3); NaN without samples.

        The mean over the samples of the gap between accuracy and mean confidence in their bin.
        """
        _, right, confidence = self.bins.T
        return _share(float(np.abs(right - confidence).sum()), self.samples)

    def figures(self) -> dict[str, float | None]:
        """Return the figures of `METRICS` by name; None for an AUC that is not defined."""
        return {name: getattr(self, name) for name in METRICS}


def _auc(predicted: Predicted) -> float | None:
    """Return the share of pairs of a sample of class 1 and one of class 0 in the right order.

    Ties count half: the Mann-Whitney statistic (Hanley & McNeil 1982).
    """
    confidence = predicted.confidence.astype(np.float64)
    scores = np.where(predicted.classes == 1, confidence, 1 - confidence)
    positive = predicted.labels == 1
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others or not np.isfinite(scores).all():
        return None
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")


def _shares(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    nothing = np.full(len(whole), np.nan)
    np.divide(part, whole, out=nothing, where=whole > 0)
    return nothing


def mean(values: Iterable[float]) -> float:
    """Return the unweighted mean; NaN of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


def pooled(by_client: Mapping[str, float], samples: Mapping[str, int]) -> float:
    """Return the accuracy over all test samples together.

    Args:
        by_client: Accuracy of each client.
        samples: Test samples of each client.
    """
    return sum(by_client[name] * size for name, size in samples.items()) / sum(samples.values())
