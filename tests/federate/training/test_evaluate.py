"""Accuracy, against counting by hand."""

import math

import pytest
import torch

from fedclip.federate.data.samples import Domain, Samples
from fedclip.federate.models.adapters import Adapter, Attention, BothAttention, NoAdapter
from fedclip.federate.models.losses import cosine_logits
from fedclip.federate.training.evaluate import accuracy, zero_shot_accuracy

TEXT = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def draw(rows: int) -> Samples:
    random = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, 5, (rows,), generator=random)
    features = TEXT[labels] + torch.randn(rows, 8, generator=random)
    order = torch.arange(rows)
    domain = Domain(None, features, labels, order.numpy(), features)  # type: ignore[arg-type]
    return Samples(domain, order)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("adapter", [None, Attention(), BothAttention()])
def test_every_sample_counts_once_however_many_there_are(
    rows: int, adapter: Adapter | None
) -> None:
    samples = draw(rows)
    network = (adapter or NoAdapter()).make(TEXT, 3)
    right = 0
    with torch.no_grad():
        for feature, label in zip(samples.features, samples.labels, strict=True):
            image, text = network(feature[None], TEXT)
            right += int(cosine_logits(image, text, 20.0).argmax() == label)
    if adapter is None:
        found = zero_shot_accuracy(samples, TEXT, 20.0)
    else:
        found = accuracy(network, adapter, samples, TEXT, 20.0)
    assert 0 < found == right / rows or rows == 1


def test_no_samples_have_no_accuracy() -> None:
    assert math.isnan(zero_shot_accuracy(draw(0), TEXT, 20.0))
    adapter = Attention()
    assert math.isnan(accuracy(adapter.make(TEXT, 0), adapter, draw(0), TEXT, 20.0))
