"""Evaluation on a client's own samples: how often the right class wins, and what is predicted."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.samples import Samples
from ..models.base import Model
from ..models.losses import cosine_logits
from ..models.network import Network
from .metrics import Integers, Predicted

# Rows that zero-shot evaluation compares at once: few enough to stay in a CPU's cache.
_ROWS_AT_ONCE = 1024

# (b, C) logits and the (b,) labels of some samples, part by part.
Parts = Iterator[tuple[Tensor, Tensor]]


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
    return _share_right(_adapted(network, model, samples, text, logit_scale), len(samples))


@torch.inference_mode()
def count(
    network: Network, model: Model, samples: Samples, text: Tensor, logit_scale: float
) -> Integers:
    """Return the (C, C) confusion matrix; takes what `accuracy` takes, and as long."""
    classes = len(text)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=samples.rows.device)
    for logits, labels in _adapted(network, model, samples, text, logit_scale):
        pairs = labels * classes + logits.argmax(dim=1)
        counts += torch.bincount(pairs, minlength=classes * classes)
    confusion: Integers = counts.reshape(classes, classes).cpu().numpy()
    return confusion


@torch.inference_mode()
def predict(
    network: Network, model: Model, samples: Samples, text: Tensor, logit_scale: float
) -> Predicted:
    """Return the class of each sample and its probability; takes what `accuracy` takes."""
    return _predicted(_adapted(network, model, samples, text, logit_scale))


@torch.inference_mode()
def zero_shot_accuracy(samples: Samples, text: Tensor, logit_scale: float) -> float:
    """Return the accuracy of the cached features themselves; NaN without samples."""
    return _share_right(_zero_shot(samples, text, logit_scale), len(samples))


@torch.inference_mode()
def zero_shot_predict(samples: Samples, text: Tensor, logit_scale: float) -> Predicted:
    """Return what the cached features themselves predict."""
    return _predicted(_zero_shot(samples, text, logit_scale))


def _adapted(
    network: Network, model: Model, samples: Samples, text: Tensor, logit_scale: float
) -> Parts:
    network.eval()
    classes, step = model.texts(text), model.rows_at_once
    for start in range(0, len(samples), step):
        inputs, labels = samples[start : start + step]
        yield network.logits(inputs, classes, logit_scale), labels


def _zero_shot(samples: Samples, text: Tensor, logit_scale: float) -> Parts:
    for start in range(0, len(samples), _ROWS_AT_ONCE):
        features, labels = samples.cached(slice(start, start + _ROWS_AT_ONCE))
        yield cosine_logits(features, text, logit_scale), labels


def _share_right(parts: Parts, samples: int) -> float:
    right = sum(int((logits.argmax(dim=1) == labels).sum()) for logits, labels in parts)
    return right / samples if samples else float("nan")


def _predicted(parts: Parts) -> Predicted:
    labels, classes, confidence = [torch.empty(0, dtype=torch.int64)], [], []
    for logits, right in parts:
        shares, highest = logits.softmax(dim=1), logits.argmax(dim=1)
        labels.append(right.cpu())
        classes.append(highest.cpu())
        confidence.append(shares.gather(1, highest[:, None])[:, 0].float().cpu())
    nothing = labels[:1]
    return Predicted(
        torch.cat(labels).numpy(),
        torch.cat(nothing + classes).numpy(),
        torch.cat([torch.empty(0), *confidence]).numpy(),
    )
