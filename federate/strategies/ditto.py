"""Ditto: beside FedAvg's model each client trains its own, held near the server's.

Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization"
(arXiv:2012.04221, algorithm 1).

Client i minimizes ``F_i(v_i) + lambda / 2 * ||v_i - w_t||^2``, w_t the server's parameters at the
start of the round, for as many epochs as it trains w, and sends back w alone. lambda = 1 is what
the paper uses where there is too little data to choose it by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ...cache.common.fields import option
from .base import OWN, PERSONAL, SHARED, ClientRound, Report
from .fedavg import FedAvg

if TYPE_CHECKING:
    from ..training.tasks import LocalTask, Trained


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and a model per client held near the server's (Li et al. 2021)."""

    personalized: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    ditto_lambda: float = option(
        1.0,
        least=0,
        most=1e38,
        flags=("--lambda", "--ditto-lambda"),
        help="Strength of the pull of a client's own model towards the server's.",
        source="Li et al. 2021",
    )

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Train the shared model, and the client's own from where it was."""
        from ..training.tasks import Proximal

        pull = Proximal(self.ditto_lambda, client.task.start)
        own = replace(client.task, start=client.personal, proximal=pull)
        return {SHARED: client.task, OWN: own}

    def report(self, client: ClientRound, trained: Mapping[str, Trained]) -> Report:
        """Send the shared model, keep the client's own."""
        return Report(trained[SHARED].parameters, state={PERSONAL: trained[OWN].parameters})
