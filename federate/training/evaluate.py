"""How often the right class wins: evaluation on a client's own samples."""

from collections.abc import Iterable, Mapping

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
    classes, right = model.texts(text), 0
    for start in range(0, len(samples), model.rows_at_once):
        inputs, labels = samples[start : start + model.rows_at_once]
        logits = network.logits(inputs, classes, logit_scale)
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(samples) if len(samples) else float("nan")


@torch.inference_mode()
def zero_shot_accuracy(samples: Samples, text: Tensor, logit_scale: float) -> float:
    """Return the accuracy of the cached features themselves; NaN without samples."""
    right = 0
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        features, labels = samples.cached(slice(start, start + _ROWS_AT_ONCE))
        logits = cosine_logits(features, text, logit_scale)
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(samples) if len(samples) else float("nan")


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
