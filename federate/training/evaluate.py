"""How often the right class wins."""

from collections.abc import Iterable, Mapping

import torch

from ..data.federation import Client, Federation
from ..data.samples import Samples
from ..models.adapters import Adapter
from ..models.losses import cosine_logits


@torch.inference_mode()
def accuracy(adapter: Adapter | None, federation: Federation, samples: Samples) -> float:
    """Share of samples whose own class has the highest logit; NaN where there are none.

    Without an adapter this is zero-shot accuracy.
    """
    if not len(samples):
        return float("nan")
    right = 0
    for start in range(0, len(samples), samples.at_once):
        some, scale = slice(start, start + samples.at_once), federation.logit_scale
        if adapter is None:
            image, labels = samples.cached(some)
            logits = cosine_logits(image, federation.text, scale)
        else:
            image, labels = samples[some]
            logits = adapter.eval().logits(image, federation.model_text, scale)
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(samples)


def test_accuracy(adapter: Adapter | None, federation: Federation) -> dict[str, float]:
    """Accuracy by client on the participants' test parts and on the whole target."""
    return {
        client.name: accuracy(adapter, federation, client.test) for client in federation.clients
    }


def validation_accuracy(adapter: Adapter, federation: Federation) -> dict[str, float]:
    """Accuracy by client on the participants' validation parts."""
    return {
        client.name: accuracy(adapter, federation, client.validation)
        for client in federation.participants
    }


def mean(values: Iterable[float]) -> float:
    """Unweighted mean; NaN of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")


def pooled(by_client: Mapping[str, float], clients: Iterable[Client]) -> float:
    """Accuracy over all test samples together."""
    sizes = {client.name: len(client.test) for client in clients}
    return sum(by_client[name] * size for name, size in sizes.items()) / sum(sizes.values())
