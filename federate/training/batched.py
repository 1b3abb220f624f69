"""Tasks of one shape stacked and trained at once: for devices where kernel launches dominate.

The parameters of each task, their gradients and the optimizer's state are a row of a
(K, P) matrix, and the adapter's parameters are views of it. The tasks with the most
steps come first, so that those still training are always the first rows.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..models.adapters import Attention
from ..models.losses import Batch
from ..models.network import AdapterNetwork, Network
from .attention import LOSS_GRADIENTS, AttentionGradients
from .autograd import AutogradGradients, VmapGradients
from .batches import Batches
from .optimizers import make_optimizer
from .tasks import LocalTask, Parameters, Trained

# Tasks at once. More gain nothing, and each takes four times its parameters.
_MOST = 128


@torch.no_grad()
def train(network: Network, tasks: Sequence[LocalTask]) -> list[Trained]:
    """Do each task, stacked with those of its shape."""
    adapter = stackable(network)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(tasks)), key=lambda index: -tasks[index].steps):
        groups[_shape(tasks[index], index)].append(index)
    trained: dict[int, Trained] = {}
    for members in groups.values():
        for first in range(0, len(members), _MOST):
            chosen = members[first : first + _MOST]
            stack = Stack(adapter, [tasks[index] for index in chosen])
            for _ in stack.run():
                pass
            trained.update(zip(chosen, stack.trained(), strict=True))
    return [trained[index] for index in range(len(tasks))]


def _shape(task: LocalTask, index: int) -> Hashable:
    """Return what tasks must share to be stacked; a loss that cannot be masked stays alone."""
    settings = task.settings
    alone = None if settings.loss.maskable else index
    return settings.loss, settings.optimizer, settings.batch_size, task.text.shape, alone


class Gradients(Protocol):
    """Computes the gradients of the tasks at work."""

    def __call__(self, batch: Batch) -> None:
        """Write the gradients of a batch, and count its losses."""

    def total_loss(self) -> Tensor:
        """Sum the losses of all samples so far, by task."""


class Stack:
    """Tasks that are trained as one. Gradients are expected to be off.

    Args:
        network: The architecture.
        tasks: Of one loss, optimizer, width, number of classes and device, those with
            the most steps first.
    """

    def __init__(self, network: AdapterNetwork, tasks: Sequence[LocalTask]) -> None:
        self._network, self._tasks = network, tasks
        self._batches = Batches(tasks)
        self._shapes = {name: tensor.shape for name, tensor in network.named_parameters()}
        self._weights = self._matrix([task.start for task in tasks])
        self._gradients = torch.empty_like(self._weights)
        settings = [task.settings for task in tasks]
        self._optimizer = make_optimizer(self._weights, self._gradients, settings)
        self._losses = self._weights.new_zeros(len(tasks))
        self._text = torch.stack([task.text for task in tasks])
        self._logit_scale = self._weights.new_tensor([task.logit_scale for task in tasks])
        self._away = self._correction = None
        if any(task.proximal for task in tasks):
            pulls = [task.proximal for task in tasks]
            self._anchor = self._matrix([pull.anchor if pull else None for pull in pulls])
            self._mu = self._weights.new_tensor([[pull.mu if pull else 0.0] for pull in pulls])
            self._away = torch.empty_like(self._weights)
        if any(task.correction for task in tasks):
            self._correction = self._matrix([task.correction for task in tasks])

    def run(self) -> Iterator[None]:
        """Train, a step at a time."""
        for first, last in pairwise(sorted({0, *self._batches.steps})):
            active = sum(steps > first for steps in self._batches.steps)
            gradients = self._make_gradients(active)

            for batch in self._batches(first, last, active):
                gradients(batch)
                self._adjust(active)
                if self._shapes:
                    self._optimizer.step(active)
                yield
            self._losses[:active] += gradients.total_loss()

    def trained(self) -> list[Trained]:
        """Return the outcome of each task, in their order."""
        views = self._views(self._weights)
        return [
            Trained(
                parameters={name: view[row].clone() for name, view in views.items()},
                loss=loss / samples if samples else math.nan,
                steps=steps,
            )
            for row, (loss, samples, steps) in enumerate(
                zip(self._losses.tolist(), self._batches.samples, self._batches.steps, strict=True)
            )
        ]

    def _make_gradients(self, active: int) -> Gradients:
        """Make what computes the gradients of the first tasks."""
        network, loss = self._network, self._tasks[0].settings.loss
        features, text = self._batches.features, self._text[:active]
        scale = self._logit_scale[:active]
        weights = self._views(self._weights[:active])
        gradients = self._views(self._gradients[:active])
        if type(network.adapter) is Attention and type(loss) in LOSS_GRADIENTS:
            rows = self._batches.longest
            return AttentionGradients(weights, gradients, loss, features, text, scale, rows)
        if (active == 1 and not features.is_cuda) or not loss.maskable:
            return AutogradGradients(
                network, weights, self._gradients[:1], loss, features, text, scale.item()
            )
        return VmapGradients(network, weights, gradients, loss, features, text, scale)

    def _adjust(self, active: int) -> None:
        """Add what the tasks' strategies add to the gradients."""
        gradients = self._gradients[:active]
        if self._away is not None:
            away = self._away[:active]
            torch.sub(self._weights[:active], self._anchor[:active], out=away)
            gradients.addcmul_(away, self._mu[:active])
        if self._correction is not None:
            gradients.add_(self._correction[:active])

    def _matrix(self, rows: Sequence[Parameters | None]) -> Tensor:
        """Write parameters as the rows of a matrix, (K, P); none as zeros."""
        size = sum(map(math.prod, self._shapes.values()))
        matrix = self._batches.features.new_zeros(len(rows), size)
        for name, view in self._views(matrix).items():
            for target, row in zip(view, rows, strict=True):
                if row is not None:
                    target.copy_(row[name])
        return matrix

    def _views(self, matrix: Tensor) -> dict[str, Tensor]:
        """See a (K, P) matrix as the adapter's parameters, each (K, ...)."""
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = torch.split(matrix, sizes, dim=1)
        return {
            name: part.view(len(part), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }


def stackable(network: Network) -> AdapterNetwork:
    """Return `network` as what can be stacked; `choose_engine` lets no other come here."""
    if not isinstance(network, AdapterNetwork):
        raise TypeError(f"{type(network).__name__} cannot be stacked")
    return network
