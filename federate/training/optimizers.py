"""The optimizers on K tasks at once: each row of a matrix is a task's parameters.

They do what torch.optim does, whose import alone takes as long as many a run.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .settings import TrainingSettings


class Optimizer(Protocol):
    """Changes parameters by their gradients."""

    def step(self, active: int) -> None:
        """Update the first `active` rows, which took part in every step so far."""


class Adam:
    """Adam (Kingma and Ba 2015) with L2 weight decay, PyTorch's fused kernel.

    Args:
        weights: (K, P), updated in place.
        gradients: (K, P).
        settings: Of each row.
    """

    def __init__(
        self, weights: Tensor, gradients: Tensor, settings: Sequence[TrainingSettings]
    ) -> None:
        groups = defaultdict(list)
        for row, s in enumerate(settings):
            groups[s.lr, s.betas, s.eps, s.weight_decay].append(row)
        self._groups = dict(groups)
        first, second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._rows = [matrix.unbind() for matrix in (weights, gradients, first, second)]
        self._count = torch.zeros((), device=weights.device)

    def step(self, active: int) -> None:
        """Update the first `active` rows."""
        self._count.add_(1)
        for (lr, betas, eps, weight_decay), members in self._groups.items():
            chosen = members[: bisect_left(members, active)]
            weights, gradients, first, second = (
                [rows[member] for member in chosen] for rows in self._rows
            )
            if chosen:
                torch._fused_adam_(
                    weights,
                    gradients,
                    first,
                    second,
                    [],
                    [self._count] * len(chosen),
                    lr=lr,
                    beta1=betas[0],
                    beta2=betas[1],
                    weight_decay=weight_decay,
                    eps=eps,
                    amsgrad=False,
                    maximize=False,
                )


class Sgd:
    """Gradient descent with L2 weight decay and no momentum.

    Args:
        weights: (K, P), updated in place.
        gradients: (K, P), overwritten.
        settings: Of each row.
    """

    def __init__(
        self, weights: Tensor, gradients: Tensor, settings: Sequence[TrainingSettings]
    ) -> None:
        self._weights, self._gradients = weights, gradients
        self._steps = weights.new_tensor([[-s.lr] for s in settings])
        self._decay = weights.new_tensor([[s.weight_decay] for s in settings])

    def step(self, active: int) -> None:
        """Update the first `active` rows."""
        weights, gradients = self._weights[:active], self._gradients[:active]
        gradients.addcmul_(weights, self._decay[:active])
        weights.addcmul_(gradients, self._steps[:active])


def make_optimizer(
    weights: Tensor, gradients: Tensor, settings: Sequence[TrainingSettings]
) -> Optimizer:
    """Make the optimizer that the rows' settings, alike in this, name."""
    kind = Sgd if settings[0].optimizer == "sgd" else Adam
    return kind(weights, gradients, settings)
