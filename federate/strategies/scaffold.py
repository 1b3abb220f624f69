"""SCAFFOLD: control variates take the drift out of the clients' steps.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"
(arXiv:1910.06378, algorithm 1, option II), with a server's rate of 1.

Client i steps by SGD, ``y = y - lr (g_i(y) - c_i + c)``, K times from the server's w, and then sets
``c_i' = c_i - c + (w - y) / (K lr)``. The server averages the y as FedAvg does, and
``c = c + sum_i p_i (c_i' - c_i)`` over the round's clients. In the paper all p_i are 1 / N, N the
number of all clients; where clients count by their samples, p_i is client i's share of all
training samples, so that c stays the mean of the c_i that the clients' objective asks for.
Both w and c travel, in both directions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from ..data.federation import Client
from ..training.tasks import ClientUpdate, LocalTask, Parameters
from .base import SERVER, State, Strategy, average, size_of, weighted_sum, zeros_like

CONTROL = "control"


class Scaffold(Strategy):
    """Karimireddy et al. 2020, option II; a client's optimizer must be plain SGD."""

    keeps_clients: ClassVar[bool] = True

    def init(self, parameters: Parameters) -> State:
        """Begin with a server's control of 0; a client's is 0 until it has trained."""
        return {SERVER: parameters, CONTROL: zeros_like(parameters)}

    def tasks(self, state: State, clients: Sequence[Client], number: int) -> list[LocalTask]:
        """Let each client correct its gradients by the server's control less its own."""
        return [
            replace(
                self.task(client, number, state[SERVER]),
                correction=_difference(state[CONTROL], _own(state, client.name)),
            )
            for client in clients
        ]

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Average the parameters, and renew the controls of those who trained."""
        server, control, rate = state[SERVER], state[CONTROL], self.settings.lr
        renewed: dict[str, Parameters] = {}
        changes: list[Parameters] = []
        for update in updates:
            own = _own(state, update.client)
            moved = _difference(server, update.parameters)
            change = {
                name: moved[name] / (update.steps * rate) - tensor
                for name, tensor in control.items()
            }
            changes.append(change)
            renewed[_part(update.client)] = {name: own[name] + change[name] for name in own}
        shares = [self._share(update) for update in updates]
        drift = weighted_sum(shares, changes)
        return {
            **state,
            **renewed,
            SERVER: average(updates, self.settings.weighting),
            CONTROL: {name: tensor + drift[name] for name, tensor in control.items()},
        }

    def bytes_per_client(self, parameters: Parameters) -> int:
        """Count the parameters and as many numbers of control."""
        return 2 * size_of(parameters.values())

    def _share(self, update: ClientUpdate) -> float:
        """Give a client's weight among all, not among the round's alone."""
        everyone = self.federation.participants
        if self.settings.weighting == "uniform":
            return 1 / len(everyone)
        return update.samples / sum(len(client.train) for client in everyone)


def _part(client: str) -> str:
    return f"{CONTROL}/{client}"


def _own(state: State, client: str) -> Parameters:
    return state.get(_part(client)) or zeros_like(state[CONTROL])


def _difference(one: Parameters, other: Parameters) -> Parameters:
    return {name: tensor - other[name] for name, tensor in one.items()}
