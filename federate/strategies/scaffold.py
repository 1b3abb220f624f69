"""SCAFFOLD: control variates take the drift out of the clients' steps.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"
(arXiv:1910.06378, algorithm 1, option II), with a server's rate of 1.

Client i steps by SGD, ``y = y - lr (g_i(y) - c_i + c)``, K times from the server's w, and then sets
``c_i' = c_i - c + (w - y) / (K lr)``. The server averages the y as FedAvg does, and
``c = c + sum_i p_i (c_i' - c_i)`` over the round's clients. In the paper all p_i are 1 / N, N the
number of all clients; where clients count by their samples, p_i is client i's share of all
training samples, so that c stays the mean of the c_i that the clients' objective asks for.
w and c travel to the clients, y and c_i' - c_i back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .aggregate import difference, weighted_sum, zeros_like
from .base import SERVER, SHARED, ClientRound, Cohort, Report, State, Strategy

if TYPE_CHECKING:
    from ..models.base import Model
    from ..training.tasks import LocalTask, Parameters, Trained, Update

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Control variates against client drift (Karimireddy et al. 2020; clients use SGD)."""

    optimizer: ClassVar[str | None] = "sgd"
    keeps_state: ClassVar[bool] = True

    def init(self, parameters: Parameters) -> State:
        """Start with a server's control of 0; a client's is 0 until it has trained."""
        return {SERVER: parameters, CONTROL: zeros_like(parameters)}

    def send(self, state: State, model: Model) -> tuple[Parameters, Mapping[str, Parameters]]:
        """Send the server's control too."""
        return state[SERVER], {CONTROL: state[CONTROL]}

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Average the parameters, and move the server's control by the clients' changes."""
        shares = [cohort.share(update) for update in updates]
        drift = weighted_sum(shares, [update.extra[CONTROL] for update in updates])
        return {
            **state,
            SERVER: cohort.average(updates),
            CONTROL: {name: tensor + drift[name] for name, tensor in state[CONTROL].items()},
        }

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Correct the gradients by the server's control minus the client's own."""
        correction = difference(client.extra[CONTROL], _own(client))
        return {SHARED: replace(client.task, correction=correction)}

    def report(self, client: ClientRound, trained: Mapping[str, Trained]) -> Report:
        """Renew the client's control, and send by how much it changed."""
        after, own = trained[SHARED], _own(client)
        moved = difference(client.task.start, after.parameters)
        change = {
            name: moved[name] / (after.steps * client.task.settings.lr) - tensor
            for name, tensor in client.extra[CONTROL].items()
        }
        renewed = {name: own[name] + change[name] for name in own}
        return Report(after.parameters, extra={CONTROL: change}, state={CONTROL: renewed})


def _own(client: ClientRound) -> Parameters:
    return client.state.get(CONTROL) or zeros_like(client.extra[CONTROL])
