"""Centralized: all participants' training samples in one place.

The upper bound that federation is measured against: one client that holds the union of the
participants' training parts, and trains on it for as many epochs a round; ``w = argmin sum_i
n_i / n F_i(w)`` without the constraint that samples stay where they are. No parameters cross the
network, as the samples themselves were brought together. Validation and test stay by client.
"""

from collections.abc import Sequence

from ..data.federation import Client
from ..training.tasks import ClientUpdate, LocalTask, Parameters
from .base import SERVER, State, Strategy


class Centralized(Strategy):
    """One client trains on everybody's samples."""

    def tasks(self, state: State, clients: Sequence[Client], number: int) -> list[LocalTask]:
        """Let one client train on all there is."""
        return [self.task(self.federation.together, number, state[SERVER])]

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Take what it trained."""
        (update,) = updates
        return {**state, SERVER: update.parameters}

    def bytes_per_client(self, parameters: Parameters) -> int:
        """No parameters are sent."""
        return 0
