"""Gradients by autograd, for any adapter: of one task, or of K at once by vmap."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ...cache import FedclipError
from ..models.losses import Batch, Loss


class AutogradGradients:
    """Computes the gradients of one task, K = 1.

    Args:
        network: The architecture.
        weights: The network's parameters by name, each (1, ...).
        gradients: (1, P), where their gradients go.
        loss: Which loss.
        features: (N, D) that the batches' rows are of.
        text: (1, C, D) class texts.
        logit_scale: Of the encoder.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        gradients: Tensor,
        loss: Loss,
        features: Tensor,
        text: Tensor,
        logit_scale: float,
    ) -> None:
        self._network = network
        self._parameters = {
            name: weight[0].detach().requires_grad_() for name, weight in weights.items()
        }
        self._gradients = gradients[0]
        self._loss = loss
        self._features, self._text, self._logit_scale = features, text[0], logit_scale
        self._total = features.new_zeros(1)

    def __call__(self, batch: Batch) -> None:
        """Write the gradients of a batch, and count its losses."""
        samples = int(batch.mask.sum())
        rows, labels = batch.rows[0, :samples], batch.labels[0, :samples]
        with torch.enable_grad():
            inputs = (self._features[rows], self._text)
            image, text = functional_call(self._network, self._parameters, inputs)
            loss = self._loss(image, text, labels, self._logit_scale)
        if self._parameters:
            found: Sequence[Tensor | None] = torch.autograd.grad(
                loss, list(self._parameters.values()), allow_unused=True
            )
            gradients = [gradient.flatten() for gradient in found if gradient is not None]
            if len(gradients) < len(found):
                unused = [
                    name for name, g in zip(self._parameters, found, strict=True) if g is None
                ]
                raise FedclipError(
                    f"{unused[0]}: this parameter has no effect on the loss; remove it, or choose "
                    "--engine plain"
                )
            torch.cat(gradients, out=self._gradients)
        self._total += loss.detach() * samples

    def total_loss(self) -> Tensor:
        """Sum the losses of all samples so far, (1,)."""
        return self._total


class VmapGradients:
    """Computes the gradients of K tasks at once.

    Args:
        network: The architecture.
        weights: The network's parameters by name, each (K, ...).
        gradients: Where their gradients go, likewise.
        loss: Which loss.
        features: (N, D) that the batches' rows are of.
        text: (K, C, D) class texts.
        logit_scale: (K,).
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        loss: Loss,
        features: Tensor,
        text: Tensor,
        logit_scale: Tensor,
    ) -> None:
        def loss_of(
            parameters: dict[str, Tensor], text: Tensor, logit_scale: Tensor, *batch: Tensor
        ) -> Tensor:
            one = Batch(*batch)
            inputs = (features[one.rows], text)
            image, text = functional_call(network, parameters, inputs)
            return loss.masked(image, text, one, logit_scale)

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
