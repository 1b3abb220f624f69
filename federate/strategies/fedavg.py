"""FedAvg: the server's parameters become the mean of the clients'.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (arXiv:1602.05629); FedCLIP uses it on adapters (Lu et al. 2023,
arXiv:2302.13485, algorithm 1).

``w = sum_i n_i / sum_j n_j * w_i`` with n_i the training samples of client i, or all
n_i equal, as the public FedCLIP script has it.
"""

from collections.abc import Sequence

from ..training.tasks import ClientUpdate
from .base import SERVER, State, Strategy, average


class FedAvg(Strategy):
    """McMahan et al. 2017."""

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Put the mean of the clients' parameters in the server's place."""
        return {**state, SERVER: average(updates, self.settings.weighting)}
