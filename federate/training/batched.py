"""Tasks of one shape stacked and trained at once: for devices on which launching is dear."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import nn

from .stack import Stack
from .tasks import ClientUpdate, LocalTask

# Tasks at once. More gain nothing, and each takes four times its parameters.
_MOST = 128


@torch.no_grad()
def train(adapter: nn.Module, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Do each task, stacked with those of its shape."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(tasks)), key=lambda index: -tasks[index].steps):
        groups[_shape(tasks[index])].append(index)
    updates: dict[int, ClientUpdate] = {}
    for members in groups.values():
        for first in range(0, len(members), _MOST):
            chosen = members[first : first + _MOST]
            stack = Stack(adapter, [tasks[index] for index in chosen])
            for _ in stack.run():
                pass
            updates.update(zip(chosen, stack.updates(), strict=True))
    return [updates[index] for index in range(len(tasks))]


def _shape(task: LocalTask) -> Hashable:
    settings = task.settings
    return settings.loss, settings.optimizer, settings.batch_size, task.federation.text.shape
