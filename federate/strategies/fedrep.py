"""FedRep: clients share a part of the adapter, and keep the rest to themselves.

Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated Learning"
(arXiv:2102.07078). With (u, v_i) the shared part and client i's own, it trains both from
(u, v_i), keeps v_i, and the server averages the u as FedAvg does.

FedRep trains v_i first and then u. Here a client trains both at once, as in FedPer (Arivazhagan
et al. 2019, arXiv:1912.00818) and FedSim (Pillutla et al. 2022, arXiv:2204.03809, who compare the
two ways), so that a round takes as many steps as one of any other strategy. An adapter's
`local_parts` name what stays with the client. The server's v keeps its initial values: a client
starts from these, and a domain left out is tested with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .base import PERSONAL, SERVER, SHARED, ClientRound, Cohort, Report, State, Strategy

if TYPE_CHECKING:
    from ..models.base import Model
    from ..training.tasks import LocalTask, Parameters, Trained, Update


@dataclass(frozen=True)
class FedRep(Strategy):
    """Share one part of the adapter and keep the other (Collins et al. 2021, trained at once)."""

    personalized: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    def send(self, state: State, model: Model) -> tuple[Parameters, Mapping[str, Parameters]]:
        """Send the shared part."""
        return _part(state[SERVER], model, local=False), {}

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Average the shared part, leave the other as it was."""
        return {**state, SERVER: {**state[SERVER], **cohort.average(updates)}}

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Train both parts, the client's own from where it was."""
        return {SHARED: replace(client.task, start=client.personal)}

    def report(self, client: ClientRound, trained: Mapping[str, Trained]) -> Report:
        """Send the shared part, keep the other."""
        parameters, model = trained[SHARED].parameters, client.task.model
        own = _part(parameters, model, local=True)
        return Report(_part(parameters, model, local=False), state={PERSONAL: own})


def _part(parameters: Parameters, model: Model, *, local: bool) -> Parameters:
    return {
        name: tensor
        for name, tensor in parameters.items()
        if name.startswith(model.local_parts) == local
    }
