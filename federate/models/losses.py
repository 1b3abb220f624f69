"""From adapted features to logits, and from logits to losses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..settings import LossName

# exp(logit_scale), which in a whole CLIP is trained with the rest.
Scale = float | Tensor

# (adapted image (B, D), adapted text (C, D), labels (B,), logit scale) -> scalar
Loss = Callable[[Tensor, Tensor, Tensor, Scale], Tensor]


def cosine_logits(image: Tensor, text: Tensor, logit_scale: Scale) -> Tensor:
    """Compare (B, D) images with (C, D) texts: ``s * normalise(I) @ normalise(T).T``, (B, C)."""
    return logit_scale * functional.normalize(image, dim=-1) @ functional.normalize(text, dim=-1).T


def clip_loss(image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale) -> Tensor:
    """CLIP's symmetric cross-entropy inside the minibatch, target i for row i.

    The text of row i is its class's prompt, so two samples of one class count as
    negatives of each other, as in the paper (Lu et al. 2023, equations 4 to 6;
    Radford et al. 2021, figure 3).
    """
    logits = cosine_logits(image, text[labels], logit_scale)
    targets = torch.arange(len(labels), device=labels.device)
    by_image = functional.cross_entropy(logits, targets)
    by_text = functional.cross_entropy(logits.T, targets)
    return (by_image + by_text) / 2


def class_loss(image: Tensor, text: Tensor, labels: Tensor, logit_scale: Scale) -> Tensor:
    """Cross-entropy of each image over the texts of all classes."""
    return functional.cross_entropy(cosine_logits(image, text, logit_scale), labels)


LOSSES: Mapping[LossName, Loss] = {"clip": clip_loss, "class": class_loss}
