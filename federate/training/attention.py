"""The gradients of the paper's adapter, derived by hand for K tasks at once.

With ``h = tanh(W1 x + b1)``, ``a = softmax(W2 h + b2)`` and ``n = (a * x) / |a * x|``, a
loss reaches the parameters through ``dz``, its gradient by ``z = W2 h + b2``. Of its
gradient ``dn`` by n, normalization passes on ``(dn - (n . dn) n) / |a * x|``, which is
orthogonal to n; so the sum inside the softmax's own gradient vanishes, and what is left
is ``dz = n * (dn - (n . dn) n)``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..models.losses import Batch, ClassLoss, ClipLoss, Loss

_SMALLEST_NORM = 1e-12  # functional.normalize's


class AttentionGradients:
    """Computes the gradients of K attention adapters, without allocating.

    Args:
        weights: The adapter's parameters by name, each (K, ...).
        gradients: Where their gradients go, likewise.
        loss: A key of `LOSS_GRADIENTS` is its class.
        features: (N, D) that the batches' rows are of.
        text: (K, C, D) class texts.
        logit_scale: (K,).
        rows: B of the batches.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        loss: Loss,
        features: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        rows: int,
    ) -> None:
        tasks, _, width = text.shape
        self._features = features
        self._first, self._second = weights["attention.0.weight"], weights["attention.2.weight"]
        self._first_t, self._second_t = self._first.mT, self._second.mT
        self._first_bias = weights["attention.0.bias"].unsqueeze(1)
        self._second_bias = weights["attention.2.bias"].unsqueeze(1)
        self._d_first = gradients["attention.0.weight"]
        self._d_second = gradients["attention.2.weight"]
        self._d_first_bias = gradients["attention.0.bias"]
        self._d_second_bias = gradients["attention.2.bias"]
        self._image, self._hidden, self._unit, self._d_unit, self._scratch = features.new_empty(
            5, tasks, rows, width
        )
        self._image_rows = self._image.flatten(0, 1)
        self._d_unit_t, self._scratch_t = self._d_unit.mT, self._scratch.mT
        self._norm = features.new_empty(tasks, rows, 1)
        scaled = functional.normalize(text, dim=-1) * logit_scale[:, None, None]
        self._loss = LOSS_GRADIENTS[type(loss)](scaled, self._unit, self._d_unit)

    def __call__(self, batch: Batch) -> None:
        """Write the gradients of a batch, and count its losses."""
        hidden, unit, d_unit, scratch = self._hidden, self._unit, self._d_unit, self._scratch
        torch.index_select(self._features, 0, batch.rows.flatten(), out=self._image_rows)
        torch.baddbmm(self._first_bias, self._image, self._first_t, out=hidden)
        hidden.tanh_()
        torch.baddbmm(self._second_bias, hidden, self._second_t, out=scratch)
        torch.softmax(scratch, -1, out=unit)
        unit.mul_(self._image)
        torch.linalg.vector_norm(unit, dim=-1, keepdim=True, out=self._norm)
        unit.div_(self._norm.clamp_(min=_SMALLEST_NORM))

        self._loss(batch)

        torch.mul(unit, d_unit, out=scratch)
        torch.sum(scratch, -1, keepdim=True, out=self._norm)
        d_unit.addcmul_(unit, self._norm, value=-1).mul_(unit)  # Now it is dz.
        torch.sum(d_unit, 1, out=self._d_second_bias)
        torch.bmm(self._d_unit_t, hidden, out=self._d_second)
        torch.bmm(d_unit, self._second, out=scratch)
        torch.ops.aten.tanh_backward.grad_input(scratch, hidden, grad_input=scratch)
        torch.sum(scratch, 1, out=self._d_first_bias)
        torch.bmm(self._scratch_t, self._image, out=self._d_first)

    def total_loss(self) -> Tensor:
        """Sum the losses of all samples so far, (K,)."""
        return self._loss.total()


class ClipGradient:
    """CLIP's loss in each task's batch, and its gradient by the normalized image features.

    Args:
        text: (K, C, D) class texts of the length of the logit scale.
        unit: (K, B, D) normalized image features.
        d_unit: (K, B, D), where the gradient goes.
    """

    def __init__(self, text: Tensor, unit: Tensor, d_unit: Tensor) -> None:
        self._unit, self._d_unit = unit, d_unit
        self._text = text.flatten(0, 1)
        self._own_text = torch.empty_like(unit)
        self._own_text_rows, self._own_text_t = self._own_text.flatten(0, 1), self._own_text.mT
        tasks, rows, _ = unit.shape
        # Image by text, and text by image.
        self._logits, self._share = text.new_empty(2, 2, tasks, rows, rows)
        self._by_image, self._by_text = self._logits
        self._share_by_image, self._share_by_text_t = self._share[0], self._share[1].mT
        self._own_share = self._share.diagonal(dim1=-2, dim2=-1)
        self._d_logits = text.new_empty(tasks, rows, rows)
        self._d_own_logits = self._d_logits.diagonal(dim1=-2, dim2=-1)
        self._picked = text.new_empty(tasks, rows)
        self._log_likelihood = text.new_zeros(tasks, rows)
        self._by_image_t = self._by_image.mT

    def __call__(self, batch: Batch) -> None:
        """Write the gradient of a batch, and count its losses."""
        share = self._share
        torch.index_select(self._text, 0, batch.texts.flatten(), out=self._own_text_rows)
        torch.bmm(self._unit, self._own_text_t, out=self._by_image)
        self._by_text.copy_(self._by_image_t)
        self._logits.add_(batch.bias.unsqueeze(1))
        torch.ops.aten._log_softmax.out(self._logits, -1, False, out=share)
        torch.sum(self._own_share, 0, out=self._picked)
        self._log_likelihood.addcmul_(self._picked, batch.mask)
        share.exp_().mul_(batch.weight.unsqueeze(-1))
        torch.add(self._share_by_image, self._share_by_text_t, out=self._d_logits)
        self._d_own_logits.sub_(batch.weight, alpha=2)
        d_unit = self._d_unit
        torch.baddbmm(d_unit, self._d_logits, self._own_text, beta=0, alpha=0.5, out=d_unit)

    def total(self) -> Tensor:
        """Sum the losses of all samples so far, (K,)."""
        return self._log_likelihood.sum(dim=1) / -2


class ClassGradient:
    """Cross-entropy over all class texts, and its gradient by the normalized image features.

    Args:
        text: (K, C, D) class texts of the length of the logit scale.
        unit: (K, B, D) normalized image features.
        d_unit: (K, B, D), where the gradient goes.
    """

    def __init__(self, text: Tensor, unit: Tensor, d_unit: Tensor) -> None:
        self._unit, self._d_unit = unit, d_unit
        self._text, self._text_t = text, text.mT
        tasks, rows, _ = unit.shape
        self._logits, self._share = text.new_empty(2, tasks, rows, text.shape[1])
        self._picked = text.new_empty(tasks, rows, 1)
        self._log_likelihood = text.new_zeros(tasks, rows, 1)

    def __call__(self, batch: Batch) -> None:
        """Write the gradient of a batch, and count its losses."""
        share, labels, weight = self._share, batch.labels.unsqueeze(-1), batch.weight.unsqueeze(-1)
        torch.bmm(self._unit, self._text_t, out=self._logits)
        torch.ops.aten._log_softmax.out(self._logits, -1, False, out=share)
        torch.gather(share, -1, labels, out=self._picked)
        self._log_likelihood.addcmul_(self._picked, batch.mask.unsqueeze(-1))
        share.exp_().mul_(weight).scatter_add_(-1, labels, weight.neg())
        torch.bmm(share, self._text, out=self._d_unit)

    def total(self) -> Tensor:
        """Sum the losses of all samples so far, (K,)."""
        return -self._log_likelihood.sum(dim=(1, 2))


# The losses whose gradients are worked out here; others are left to autograd.
LOSS_GRADIENTS: Mapping[type[Loss], type[ClipGradient] | type[ClassGradient]] = {
    ClipLoss: ClipGradient,
    ClassLoss: ClassGradient,
}
