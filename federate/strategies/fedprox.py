"""FedProx: FedAvg whose clients are held near the server.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (arXiv:1812.06127,
algorithm 2).

Client i minimizes ``F_i(w) + mu / 2 * ||w - w_t||^2``, w_t the server's parameters at the start
of the round. The server averages as FedAvg does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...cache.common.fields import option
from .base import SHARED, ClientRound
from .fedavg import FedAvg

if TYPE_CHECKING:
    from ..training.tasks import LocalTask


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a pull towards the server's parameters (Li et al. 2020)."""

    mu: float = option(
        1e-3,
        least=0,
        most=1e38,
        help="Strength of the pull towards the server's parameters.",
        source="Li et al. 2020, the smallest value tried",
    )

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Pull the client back to where it starts."""
        from ..training.tasks import Proximal

        return {SHARED: replace(client.task, proximal=Proximal(self.mu, client.task.start))}
