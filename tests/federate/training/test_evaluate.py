"""Accuracy, against counting by hand."""

import math

import pytest
import torch

from fedclip.federate.data.federation import Federation
from fedclip.federate.data.samples import Domain, Samples
from fedclip.federate.models.adapters import Adapter, make_adapter
from fedclip.federate.models.losses import cosine_logits
from fedclip.federate.training.evaluate import accuracy

TEXT = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
FEDERATION = Federation((), None, TEXT, 20.0)


def draw(rows: int) -> Samples:
    random = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, 5, (rows,), generator=random)
    features = TEXT[labels] + torch.randn(rows, 8, generator=random)
    order = torch.arange(rows)
    domain = Domain(None, features, labels, order.numpy())  # type: ignore[arg-type]
    return Samples(domain, order)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize(
    "adapter", [None, make_adapter("attention", TEXT, 3), make_adapter("attention-both", TEXT, 3)]
)
def test_every_sample_counts_once_however_many_there_are(
    rows: int, adapter: Adapter | None
) -> None:
    samples = draw(rows)
    right = 0
    with torch.no_grad():
        for feature, label in zip(samples.features, samples.labels, strict=True):
            image, text = feature[None], TEXT
            if adapter is not None:
                image, text = adapter(image, text)
            right += int(cosine_logits(image, text, 20.0).argmax() == label)
    assert 0 < accuracy(adapter, FEDERATION, samples) == right / rows or rows == 1


def test_of_no_samples_there_is_no_accuracy() -> None:
    assert math.isnan(accuracy(None, FEDERATION, draw(0)))
