"""Losses, one class each.

Importing this imports no torch: the command line lists losses before it needs any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

# exp(logit_scale), which a whole CLIP trains with the rest.
Scale: TypeAlias = "float | Tensor"


class Batch(NamedTuple):
    """One minibatch of each of K tasks, all padded to B samples; every tensor is (K, B).

    Attributes:
        rows: int64, the samples as rows of the tasks' features; padding repeats some row.
        labels: int64, their classes.
        texts: int64, their class texts as rows of the tasks' texts one below the other.
        mask: float32, 1 for a sample and 0 for padding.
        weight: float32, the mask over the number of samples, so that a task's sum to 1.
        bias: float32, 0 for a sample; for padding, what makes a softmax leave it out.
    """

    rows: Tensor
    labels: Tensor
    texts: Tensor
    mask: Tensor
    weight: Tensor
    bias: Tensor


def cosine_logits(image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
    """Compare (B, D) images with (C, D) texts: ``s * normalize(I) @ normalize(T).T``, (B, C)."""
    from torch.nn.functional import normalize

    return logit_scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of adapted features.

    A loss without `masked` works too: the engines then train one client at a time.
    """

    @abstractmethod
    def __call__(self, image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale) -> Tensor:
        """Return the mean over a minibatch.

        Args:
            image: (B, D) adapted image features.
            text: (C, D) adapted class texts.
            labels: (B,) int64.
            logit_scale: ``exp(logit_scale)``.
        """

    def masked(self, image: Tensor, text: Tensor, batch: Batch, logit_scale: Tensor) -> Tensor:
        """Return the same for a padded minibatch, of (B, D) images and (C, D) texts."""
        raise NotImplementedError

    @property
    def maskable(self) -> bool:
        """Whether `masked` is there."""
        return type(self).masked is not Loss.masked


@dataclass(frozen=True)
class ClipLoss(Loss):
    """Symmetric cross-entropy inside the minibatch, as CLIP is trained.

    Target i for row i. The text of row i is its class's prompt, so two samples of one class
    count as negatives of each other, as in the paper (Lu et al. 2023, equations 4 to 6; Radford
    et al. 2021, figure 3).
    """

    def __call__(self, image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale) -> Tensor:
        """Average the loss of images over texts and that of texts over images."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = cosine_logits(image, text[labels], logit_scale)
        targets = torch.arange(len(labels), device=labels.device)
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2

    def masked(self, image: Tensor, text: Tensor, batch: Batch, logit_scale: Tensor) -> Tensor:
        """Leave padding out of each softmax by its bias."""
        logits = cosine_logits(image, text[batch.labels], 1.0) * logit_scale
        by_image = (logits + batch.bias).log_softmax(dim=1).diagonal()
        by_text = (logits.T + batch.bias).log_softmax(dim=1).diagonal()
        return (batch.weight * (by_image + by_text)).sum() / -2


@dataclass(frozen=True)
class ClassLoss(Loss):
    """Cross-entropy of each image over the texts of all classes."""

    def __call__(self, image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale) -> Tensor:
        """Average over the images."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(cosine_logits(image, text, logit_scale), labels)

    def masked(self, image: Tensor, text: Tensor, batch: Batch, logit_scale: Tensor) -> Tensor:
        """Weight padding by zero."""
        shares = (cosine_logits(image, text, 1.0) * logit_scale).log_softmax(dim=1)
        return -(batch.weight * shares.gather(1, batch.labels[:, None])[:, 0]).sum()


LOSSES: Registry[Loss] = Registry(
    "loss",
    Loss,  # type: ignore[type-abstract]
    __package__,
    {"clip": "losses:ClipLoss", "class": "losses:ClassLoss"},
)
