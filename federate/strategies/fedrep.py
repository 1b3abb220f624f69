"""FedRep: clients share a part of the adapter, and keep the rest to themselves.

Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated Learning"
(arXiv:2102.07078). With (u, v_i) the shared part and client i's own, it trains both from
(u, v_i), keeps v_i, and the server averages the u as FedAvg does.

FedRep trains v_i first and then u. Here a client trains both at once, as in FedPer (Arivazhagan
et al. 2019, arXiv:1912.00818) and FedSim (Pillutla et al. 2022, arXiv:2204.03809, who compare the
two ways), so that a round takes as many steps as that of any other strategy. `LOCAL_PARTS` in the
settings has which parts of which adapter stay local. The server's v stays as it was at first: that
is what a client begins with, and what a domain left out is tested with.
"""

from collections.abc import Sequence
from typing import ClassVar

from ..settings import LOCAL_PARTS
from ..training.tasks import ClientUpdate, Parameters
from .base import SERVER, State, Strategy, average, personal_part, size_of


class FedRep(Strategy):
    """Collins et al. 2021, with both parts trained at once."""

    personalised: ClassVar[bool] = True
    keeps_clients: ClassVar[bool] = True

    def apply(self, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Average what is shared, and leave each client the rest."""
        mean = average(updates, self.settings.weighting)
        server = {name: w if self._local(name) else mean[name] for name, w in state[SERVER].items()}
        own = {
            personal_part(update.client): {
                name: w for name, w in update.parameters.items() if self._local(name)
            }
            for update in updates
        }
        return {**state, **own, SERVER: server}

    def bytes_per_client(self, parameters: Parameters) -> int:
        """Count the shared part."""
        return size_of(w for name, w in parameters.items() if not self._local(name))

    def _local(self, name: str) -> bool:
        return name.startswith(LOCAL_PARTS[self.settings.adapter])
