"""Ditto: beside FedAvg's model each client trains one of its own, held near the server's.

Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization"
(arXiv:2012.04221, algorithm 1).

Client i minimises ``F_i(v_i) + lambda / 2 * ||v_i - w_t||^2``, w_t the server's parameters at the
start of the round, as long as it trains w, and sends back w alone. lambda = 1 is what the paper
sets where there is too little data to choose it by.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ..data.federation import Client
from ..training.tasks import ClientUpdate, LocalTask, Proximal
from .base import SERVER, State, personal_part
from .fedavg import FedAvg


class Ditto(FedAvg):
    """Li et al. 2021."""

    personalised: ClassVar[bool] = True
    keeps_clients: ClassVar[bool] = True

    def tasks(self, state: State, clients: Sequence[Client], number: int) -> list[LocalTask]:
        """Let each client train the shared model; then, each its own."""
        pull = Proximal(self.settings.option("ditto_lambda"), state[SERVER])
        shared = [self.task(client, number, state[SERVER]) for client in clients]
        own = [replace(task, proximal=pull) for task in super().tasks(state, clients, number)]
        return [*shared, *own]

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Average the shared models, and leave each client its own."""
        half = len(updates) // 2
        own = {personal_part(update.client): update.parameters for update in updates[half:]}
        return {**super().apply(state, updates[:half]), **own}
