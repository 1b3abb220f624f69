"""Local: every client trains alone, and nothing crosses the network.

The lower bound that federation has to beat, as in McMahan et al. 2017 (arXiv:1602.05629) and
every paper on personalization since. Client i minimizes F_i from the common initial parameters,
and continues where it was. The server has no model; a domain left out is tested with every
client's model, and the mean of their accuracies is what a client of that kind may expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .base import OWN, PERSONAL, ClientRound, Cohort, Report, State, Strategy

if TYPE_CHECKING:
    from ..models.base import Model
    from ..training.tasks import LocalTask, Parameters, Trained, Update


@dataclass(frozen=True)
class Local(Strategy):
    """Every client trains alone: the lower bound."""

    personalized: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True
    shared: ClassVar[bool] = False

    def send(self, state: State, model: Model) -> tuple[Parameters, Mapping[str, Parameters]]:
        """Send nothing."""
        return {}, {}

    def aggregate(self, state: State, updates: Sequence[Update], cohort: Cohort) -> State:
        """Change nothing."""
        return state

    def tasks(self, client: ClientRound) -> dict[str, LocalTask]:
        """Continue with the client's own model."""
        return {OWN: replace(client.task, start=client.personal)}

    def report(self, client: ClientRound, trained: Mapping[str, Trained]) -> Report:
        """Keep the model, send nothing."""
        return Report({}, state={PERSONAL: trained[OWN].parameters})
