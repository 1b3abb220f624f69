"""Trains many clients' adapters."""

from collections.abc import Sequence

from torch import nn

from .engines import plain
from .tasks import ClientUpdate, LocalTask, Parameters, Proximal, copy_parameters, draw_batches

__all__ = [
    "ClientUpdate",
    "LocalTask",
    "Parameters",
    "Proximal",
    "copy_parameters",
    "draw_batches",
    "train_clients",
]


def train_clients(adapter: nn.Module, tasks: Sequence[LocalTask]) -> list[ClientUpdate]:
    """Do each task, and return the updates in their order.

    Args:
        adapter: The adapter's architecture; its own parameters are overwritten.
        tasks: Of any clients, of one adapter.
    """
    return plain.train(adapter, tasks)
