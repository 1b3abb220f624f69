"""Logits and losses against values worked out by hand."""

import math

import pytest
import torch

from fedclip.federate.models.losses import ClassLoss, ClipLoss, cosine_logits


def test_logits_are_scaled_cosines_whatever_the_norms() -> None:
    image = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    text = torch.tensor([[2.0, 0.0], [0.0, 7.0], [1.0, 1.0]])
    half = math.sqrt(0.5)
    expected = 10 * torch.tensor([[0.6, 0.8, 1.4 * half], [0.0, 1.0, half]])
    torch.testing.assert_close(cosine_logits(image, text, 10.0), expected)


def test_the_clip_loss_takes_the_other_rows_of_the_batch_as_negatives() -> None:
    image = torch.eye(2)
    text = torch.eye(2)
    right = math.log(1 + math.exp(-2.0))
    assert ClipLoss()(image, text, torch.tensor([0, 1]), 2.0).item() == pytest.approx(right)
    # Two samples of one class are negatives of each other, as in the paper.
    value = ClipLoss()(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), text, torch.tensor([0, 0]), 2.0)
    assert value.item() == pytest.approx(math.log(2))


def test_the_clip_loss_is_the_mean_of_both_directions() -> None:
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.eye(2)
    by_image = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.6 - 0.8))) / 2
    by_text = (math.log(1 + math.exp(0.6 - 1.0)) + math.log(1 + math.exp(0.0 - 0.8))) / 2
    value = ClipLoss()(image, text, torch.tensor([0, 1]), 1.0).item()
    assert value == pytest.approx((by_image + by_text) / 2)


def test_the_class_loss_compares_with_the_texts_of_all_classes() -> None:
    image = torch.tensor([[1.0, 0.0, 0.0]])
    value = ClassLoss()(image, torch.eye(3), torch.tensor([0]), 2.0).item()
    assert value == pytest.approx(math.log(1 + 2 * math.exp(-2.0)))
