"""FedProx: FedAvg whose clients are held near the server.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (arXiv:1812.06127,
algorithm 2).

Client i minimises ``F_i(w) + mu / 2 * ||w - w_t||^2``, w_t the server's parameters at the start
of the round. The server averages as FedAvg does.
"""

from dataclasses import replace

from ..data.federation import Client
from ..training.tasks import LocalTask, Parameters, Proximal
from .fedavg import FedAvg


class FedProx(FedAvg):
    """Li et al. 2020."""

    def task(self, client: Client, number: int, start: Parameters) -> LocalTask:
        """Let a client train from `start`, and pull it back there."""
        pull = Proximal(self.settings.option("mu"), start)
        return replace(super().task(client, number, start), proximal=pull)
