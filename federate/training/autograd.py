"""Gradients by autograd, for any adapter: of one task, or of K at once by vmap."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from ..models.losses import LOSSES, cosine_logits
from ..settings import LossName
from .batches import Batch


class AutogradGradients:
    """Computes the gradients of one task, K = 1.

    Args:
        adapter: The architecture.
        weights: The adapter's parameters by name, each (1, ...).
        gradients: (1, P), where their gradients go.
        loss: Which loss.
        features: (N, D) that the batches' rows are of.
        text: (1, C, D) class texts.
        logit_scale: Of the encoder.
    """

    def __init__(
        self,
        adapter: nn.Module,
        weights: Mapping[str, Tensor],
        gradients: Tensor,
        loss: LossName,
        features: Tensor,
        text: Tensor,
        logit_scale: float,
    ) -> None:
        self._adapter = adapter
        self._parameters = {
            name: weight[0].detach().requires_grad_() for name, weight in weights.items()
        }
        self._gradients = gradients[0]
        self._loss = LOSSES[loss]
        self._features, self._text, self._logit_scale = features, text[0], logit_scale
        self._total = features.new_zeros(1)

    def __call__(self, batch: Batch) -> None:
        """Write the gradients of a batch, and count its losses."""
        samples = int(batch.mask.sum())
        rows, labels = batch.rows[0, :samples], batch.labels[0, :samples]
        with torch.enable_grad():
            inputs = (self._features[rows], self._text)
            image, text = functional_call(self._adapter, self._parameters, inputs)
            loss = self._loss(image, text, labels, self._logit_scale)
        if self._parameters:
            found = torch.autograd.grad(loss, list(self._parameters.values()))
            torch.cat([gradient.flatten() for gradient in found], out=self._gradients)
        self._total += loss.detach() * samples

    def total_loss(self) -> Tensor:
        """Sum the losses of all samples so far, (1,)."""
        return self._total


class VmapGradients:
    """Computes the gradients of K tasks at once.

    Args:
        adapter: The architecture.
        weights: The adapter's parameters by name, each (K, ...).
        gradients: Where their gradients go, likewise.
        loss: Which loss.
        features: (N, D) that the batches' rows are of.
        text: (K, C, D) class texts.
        logit_scale: (K,).
    """

    def __init__(
        self,
        adapter: nn.Module,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        loss: LossName,
        features: Tensor,
        text: Tensor,
        logit_scale: Tensor,
    ) -> None:
        masked_loss = _clip_loss if loss == "clip" else _class_loss

        def loss_of(
            parameters: dict[str, Tensor], text: Tensor, logit_scale: Tensor, *batch: Tensor
        ) -> Tensor:
            one = Batch(*batch)
            inputs = (features[one.rows], text)
            image, text = functional_call(adapter, parameters, inputs)
            return masked_loss(image, text, one, logit_scale)

        self._weights, self._gradients = dict(weights), gradients
        self._text, self._logit_scale = text, logit_scale
        self._differentiate = vmap(grad_and_value(loss_of)) if weights else None
        self._evaluate = vmap(loss_of)
        self._total = features.new_zeros(len(text))

    def __call__(self, batch: Batch) -> None:
        """Write the gradients of a batch, and count its losses."""
        inputs = (self._weights, self._text, self._logit_scale, *batch)
        if self._differentiate is None:
            losses = self._evaluate(*inputs)
        else:
            found, losses = self._differentiate(*inputs)
            for name, gradient in found.items():
                self._gradients[name].copy_(gradient)
        self._total.addcmul_(losses, batch.mask.sum(dim=1))

    def total_loss(self) -> Tensor:
        """Sum the losses of all samples so far, (K,)."""
        return self._total


def _clip_loss(image: Tensor, text: Tensor, batch: Batch, logit_scale: Tensor) -> Tensor:
    """`losses.clip_loss` on a padded batch: (B, D) images and (C, D) texts to a scalar."""
    logits = cosine_logits(image, text[batch.labels], 1.0) * logit_scale
    by_image = functional.log_softmax(logits + batch.bias, dim=1).diagonal()
    by_text = functional.log_softmax(logits.T + batch.bias, dim=1).diagonal()
    return (batch.weight * (by_image + by_text)).sum() / -2


def _class_loss(image: Tensor, text: Tensor, batch: Batch, logit_scale: Tensor) -> Tensor:
    """`losses.class_loss` on a padded batch: (B, D) images and (C, D) texts to a scalar."""
    shares = functional.log_softmax(cosine_logits(image, text, 1.0) * logit_scale, dim=1)
    return -(batch.weight * shares.gather(1, batch.labels[:, None])[:, 0]).sum()
