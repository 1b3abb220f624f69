"""Local: every client trains by itself, and nothing crosses the network.

The lower bound that federation is to beat, as McMahan et al. 2017 (arXiv:1602.05629) and every
paper on personalisation since have it. Client i minimises F_i from the common first parameters,
and goes on where it was. There is no server's model; a domain left out is tested with every
client's model, and the mean of their accuracies is what a client of that kind may expect.
"""

from collections.abc import Sequence
from typing import ClassVar

from ..training.tasks import ClientUpdate, Parameters
from .base import State, Strategy, personal_part


class Local(Strategy):
    """Nothing is shared."""

    personalised: ClassVar[bool] = True
    keeps_clients: ClassVar[bool] = True
    shared: ClassVar[bool] = False

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Leave each client its own model."""
        return {**state, **{personal_part(each.client): each.parameters for each in updates}}

    def bytes_per_client(self, parameters: Parameters) -> int:
        """Nothing is sent."""
        return 0
