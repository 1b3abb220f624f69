"""Metrics of predictions: scikit-learn's on random ones, and exact values on a few."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fedclip.federate.training.metrics import BINS, Predicted, Tally, mean, pooled

# The environment for comparisons with Flower does not have it.
metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")


def drawn(samples: int, classes: int, seed: int, *, seen: int | None = None) -> Predicted:
    """Draw predictions that are right every other time; of `seen` classes only."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, seen or classes, samples)
    guess = random.integers(0, seen or classes, samples)
    predicted = np.where(random.random(samples) < 0.5, labels, guess)
    confidence = random.uniform(1 / classes, 1, samples).astype(np.float32)
    return Predicted(labels, predicted, confidence)


@pytest.mark.parametrize(
    ("samples", "classes", "seen"),
    [(1, 3, 3), (50, 2, 2), (200, 7, 7), (300, 12, 5), (999, 65, 65)],
)
def test_metrics_agree_with_those_of_scikit_learn(samples: int, classes: int, seen: int) -> None:
    for seed in range(20):
        predicted = drawn(samples, classes, seed, seen=seen)
        labels, answers = predicted.labels, predicted.classes
        tally = Tally.of(predicted, classes)
        expected = metrics.confusion_matrix(labels, answers, labels=range(classes))
        assert (tally.confusion == expected).all()
        assert tally.accuracy == pytest.approx((labels == answers).mean(), abs=1e-12)
        there = np.unique(labels)
        recall = metrics.recall_score(labels, answers, labels=there, average=None, zero_division=0)
        assert tally.recall[there] == pytest.approx(recall, abs=1e-12)
        assert np.isnan(np.delete(tally.recall, there)).all()
        if len(there) > 1 or (labels == answers).all():
            balanced = metrics.balanced_accuracy_score(labels, answers)
            assert tally.balanced_accuracy == pytest.approx(balanced, abs=1e-12)
        f1 = metrics.f1_score(labels, answers, average="macro", zero_division=0)
        assert tally.macro_f1 == pytest.approx(f1, abs=1e-12)


def test_the_calibration_error_is_that_of_scikit_learns_bins() -> None:
    for seed in range(20):
        predicted = drawn(400, 10, seed)
        confidence = predicted.confidence.astype(np.float64)
        shares, confidences = calibration.calibration_curve(
            predicted.right, confidence, n_bins=BINS
        )
        edges = np.linspace(0, 1, BINS + 1)
        sizes = [np.sum((confidence > low) & (confidence <= high)) for low, high in pairwise(edges)]
        full = np.array([size for size in sizes if size])
        expected = (full * np.abs(shares - confidences)).sum() / 400
        assert Tally.of(predicted, 10).calibration_error == pytest.approx(expected, abs=1e-12)


def test_the_area_under_the_curve_agrees_with_scikit_learn_ties_included() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        score = (random.integers(0, 20, 90) / 19).astype(np.float32)
        labels = random.integers(0, 2, 90)
        answers = (score > 0.5).astype(np.int64)
        confidence = np.where(answers == 1, score, 1 - score)
        tally = Tally.of(Predicted(labels, answers, confidence), 2)
        assert tally.auc == pytest.approx(metrics.roc_auc_score(labels, score), abs=1e-12)


def test_the_area_is_not_defined_with_other_than_two_classes_or_with_one_kind_of_sample() -> None:
    assert Tally.of(drawn(50, 3, 0), 3).auc is None
    ones = Predicted(np.ones(4, np.int64), np.ones(4, np.int64), np.full(4, 0.9, np.float32))
    assert Tally.of(ones, 2).auc is None


def test_tallies_of_clients_add_up_to_the_tally_of_all_samples() -> None:
    predicted = drawn(500, 6, 1)
    parts = [
        Predicted(predicted.labels[part], predicted.classes[part], predicted.confidence[part])
        for part in (slice(99), slice(99, 500))
    ]
    together, alone = Tally.of(parts[0], 6) + Tally.of(parts[1], 6), Tally.of(predicted, 6)
    assert (together.confusion == alone.confusion).all()
    assert together.bins == pytest.approx(alone.bins)
    assert together.samples == 500
    assert together.auc is None


def test_exact_values_of_three_samples() -> None:
    predicted = Predicted(
        np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0.5, 0.75, 1.0], np.float32)
    )
    tally = Tally.of(predicted, 2)
    assert tally.confusion.tolist() == [[1, 0], [1, 1]]
    assert tally.recall.tolist() == [1.0, 0.5]
    assert tally.figures() == {
        "accuracy": 2 / 3,
        "balanced_accuracy": 0.75,
        "macro_f1": pytest.approx(2 / 3),
        "calibration_error": pytest.approx((0.5 + 0.75 + 0) / 3),
        "auc": 0.5,
    }


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    confidence = np.array([0.2, 3 / 15, 1.0, 0.0], np.float32)
    zeros = np.zeros(4, np.int64)
    bins = Tally.of(Predicted(zeros, zeros, confidence), 1).bins
    sizes = np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence.astype(np.float64))
    assert bins[:, 0].tolist() == np.bincount(sizes, minlength=15).tolist()
    assert bins[14, 0] == bins[0, 0] == 1


def test_no_samples_have_no_figures() -> None:
    nothing = np.array([], np.int64)
    tally = Tally.of(Predicted(nothing, nothing, np.array([], np.float32)), 3)
    assert tally.samples == 0
    assert tally.figures().pop("auc") is None
    assert all(math.isnan(value) for value in tally.figures().values() if value is not None)


def test_means_over_clients_and_over_samples() -> None:
    assert mean([0.5, 1.0]) == 0.75
    assert math.isnan(mean([]))
    assert pooled({"a": 0.5, "b": 1.0}, {"a": 2, "b": 6}) == 0.875
