"""How often the right class wins: evaluation on a client's own samples."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..data.samples import Samples
from ..models.base import Model
from ..models.losses import cosine_logits
from ..models.network import Network

# Rows that zero-shot evaluation compares at once: few enough to stay in a CPU's cache.
_ROWS_AT_ONCE = 1024


@torch.inference_mode()
def accuracy(
    network: Network, model: Model, samples: Samples, text: Tensor, logit_scale: float
) -> float:
    """Return the share of samples whose own class has the highest logit; NaN without samples.

    Args:
        network: What classifies.
        model: What it is a network of.
        samples: The client's.
        text: (C, D) class texts of the cache.
        logit_scale: The encoder's ``exp(logit_scale)``.
    """
    network.eval()
    classes = model.texts(text)

    def classify(some: slice) -> tuple[Tensor, Tensor]:
        inputs, labels = samples[some]
        return network.logits(inputs, classes, logit_scale), labels

    return _share_right(len(samples), model.rows_at_once, classify)


@torch.inference_mode()
def zero_shot_accuracy(samples: Samples, text: Tensor, logit_scale: float) -> float:
    """Return the accuracy of the cached features themselves; NaN without samples."""

    def classify(some: slice) -> tuple[Tensor, Tensor]:
        features, labels = samples.cached(some)
        return cosine_logits(features, text, logit_scale), labels

    return _share_right(len(samples), _ROWS_AT_ONCE, classify)


def _share_right(
    rows: int, at_once: int, classify: Callable[[slice], tuple[Tensor, Tensor]]
) -> float:
    """Return how often the highest of the (b, C) logits is that of the (b,) label."""
    right = 0
    for start in range(0, rows, at_once):
        logits, labels = classify(slice(start, start + at_once))
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / rows if rows else float("nan")


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
