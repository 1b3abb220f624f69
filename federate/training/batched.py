"""Tasks of one shape stacked and trained at once: for devices where kernel launches dominate."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch

from ..models.network import Network
from .stack import Stack, stackable
from .tasks import LocalTask, Trained

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
